"""First call of each kind in this process, and how long each kernel took to compile; prints JSON.

Run with NUMBA_CACHE_DIR at an empty folder: ``python -m tools.bench.peers.first_calls``.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from numba.core import ccallback, event

import lowlevel
import quant
from quant.matmul import matmul


class Recorder(event.Listener):
    """Kernels compiled since `take` was last called: (name, seconds), outermost only."""

    def __init__(self) -> None:
        self._depth, self._begun = 0, 0.0
        self._found: list[tuple[str, float]] = []

    def on_start(self, e: Any) -> None:
        self.begin()

    def on_end(self, e: Any) -> None:
        self.end(e.data["dispatcher"].py_func)

    def begin(self) -> None:
        if self._depth == 0:
            self._begun = time.perf_counter()
        self._depth += 1

    def end(self, function: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            name = f"{function.__module__}.{function.__name__}"
            self._found.append((name, time.perf_counter() - self._begun))

    def take(self) -> list[tuple[str, float]]:
        found, self._found = self._found, []
        return found


def _record_c_kernels(recorder):
    """C callbacks send no events: their `compile` is wrapped."""
    compile_ = ccallback.CFunc.compile

    def recorded(self):
        recorder.begin()
        try:
            return compile_(self)
        finally:
            recorder.end(self._pyfunc)

    ccallback.CFunc.compile = recorded


def _calls():
    """(name, first call) of everything that compiles kernels."""
    q = np.ones((2, 40, 64), np.float32)
    yield "attention f32", lambda: lowlevel.attention(q, q, q)
    yield "attention f16 K/V", lambda: lowlevel.attention(q, *[q.astype(np.float16)] * 2)
    yield "attention f32, 1 row", lambda: lowlevel.attention(q[:, :1], q, q)
    yield "attention f16 K/V, 1 row", lambda: lowlevel.attention(q[:, :1], *[q.astype("f2")] * 2)
    yield 'attention precision="bf16"', lambda: lowlevel.attention(q, q, q, precision="bf16")
    yield 'attention method="steps"', lambda: lowlevel.attention(q, q, q, method="steps")
    for block in quant.FORMATS.values():
        name = block.name
        columns = max(256, block.block_weights)
        data = np.zeros((8, block.row_bytes(columns)), np.uint8)
        tensor = quant.QuantTensor(data, name, (8, columns))
        x = np.ones((20, columns), np.float32)
        yield f"dequantize {name}", lambda t=tensor: quant.dequantize(t)
        yield f"matmul {name}, 1 row", lambda t=tensor, x=x: matmul(x[:1], t)
        yield f"matmul {name}, 20 rows", lambda t=tensor, x=x: matmul(x, t)
    yield (
        "matmul Q8_0 exact",
        lambda: matmul(
            np.ones((20, 256), np.float32),
            quant.QuantTensor(np.zeros((8, 272), np.uint8), "Q8_0", (8, 256)),
            exact=True,
        ),
    )
    yield "quantize Q8_0", lambda: quant.quantize(q[0], "Q8_0")


def main() -> None:
    recorder = Recorder()
    event.register("numba:compile", recorder)
    _record_c_kernels(recorder)
    rows = []
    for name, call in _calls():
        begun = time.perf_counter()
        call()
        total = time.perf_counter() - begun
        kernels = recorder.take()
        slowest = max(kernels, key=lambda kernel: kernel[1], default=("", 0.0))
        rows.append(
            dict(
                name=name,
                seconds=slowest[1],
                slowest=slowest[0],
                first_call_seconds=total,
                kernels=kernels,
            )
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
