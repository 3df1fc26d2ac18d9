"""quant.matmul on a device: how near the memory's speed, and how many operations a second.

On a GPU every case rotates over several tensors, more of them than the second-level cache holds, and
is timed as the replay of a graph of its launches, so that the host's share of a call is not in it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import quant
from lowlevel import Pool, asnumpy, devices
from quant.formats import block_format

from . import device_timing as timing

# Weights of all tensors of a case together, in bytes: several times any GPU's second-level cache.
ROTATED_BYTES = 400 << 20
_MAX_CALLS = 64
TYPES = ("IQ4_NL", "Q2_K", "Q3_K", "Q6_K", "Q8_0", "Q4_K", "Q4_0")
SIZES = (1, 2, 4, 8, 16, 64, 512)
# Of one value, over the norms' product and columns**-0.5: int8 activations' 0.0071 rms, sixfold.
BOUND = 0.043


def measure(
    device: str,
    types: Sequence[str],
    sizes: Sequence[int],
    n_rows: int,
    columns: int,
    copy_speed: float,
    *,
    n_expert: int = 0,
    rounds: int = 15,
    exact: bool = False,
) -> list[dict[str, Any]]:
    """Time products of `sizes` rows of x with tensors of each type.

    Parameters
    ----------
    copy_speed : float
        Bytes a second, read and written, of a copy on the device.
    n_expert : int
        0: one matrix. Else a stack of so many, each row of x meeting one at random.

    Returns
    -------
    list of dict
        type, n, n_expert, shape, seconds (of each round), bytes (of the weights), of_copy (their
        bandwidth over the copy's), tops (multiply-adds counted as two), error (of sampled values, over
        the norms' product and columns**-0.5).
    """
    rows = []
    with _stream(device), Pool("256MiB", device=device) as pool:
        for name in types:
            cases = {
                n: _Case(device, pool, name, n, n_rows, columns, n_expert, exact) for n in sizes
            }
            times: dict[int, list[float]] = {n: [] for n in sizes}
            for _ in range(rounds):
                for n, case in cases.items():
                    times[n].append(case.seconds())
            for n, case in cases.items():
                middle = statistics.median(times[n])
                n_bytes = case.tensors[0].n_bytes
                rows.append(
                    dict(
                        type=name, n=n, n_expert=n_expert, shape=(n_rows, columns),
                        seconds=times[n], bytes=n_bytes, of_copy=n_bytes / middle / copy_speed,
                        tops=2 * n * n_rows * columns / middle / 1e12, error=case.error(),
                    )
                )  # fmt: skip
    return rows


def _stream(device):
    """One stream for everything: a capture cannot wait for what another stream did with the pool."""
    if not timing.is_gpu(device):
        return contextlib.nullcontext()
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


class _Case:
    """A number of rows of x and a type, ready to be timed."""

    def __init__(self, device, pool, name, n, n_rows, columns, n_expert, exact):
        shape = (n_expert, n_rows, columns) if n_expert else (n_rows, columns)
        size = max(1, n_expert) * n_rows * block_format(name).row_bytes(columns)
        rotated = ROTATED_BYTES if timing.is_gpu(device) and n < 128 else 1
        n_calls = min(_MAX_CALLS, -(-rotated // size))
        self._device, self._pool, self._exact = device, pool, exact
        self.tensors = [timing.blocks(device, name, shape, seed) for seed in range(n_calls)]
        self._x = timing.normal(device, (n, columns), np.float32, 7)
        self._out = devices.get(device).empty((n, n_rows), np.dtype(np.float32))
        self._experts = self._experts_there = None
        if n_expert:
            self._experts = np.random.default_rng(3).integers(0, n_expert, n).astype(np.int32)
            self._experts_there = devices.get(device).from_host(self._experts)
        self._multiply(self.tensors[0])  # compiles
        devices.get(device).synchronise()
        self._graph = None
        if timing.is_gpu(device) and not n_expert:  # who meets whom is read on the host
            import cupy

            stream = cupy.cuda.get_current_stream()
            stream.begin_capture()
            self._multiply_all()
            self._graph = stream.end_capture()

    def _multiply(self, t):
        quant.matmul(
            self._x, t, pool=self._pool, out=self._out, exact=self._exact,
            experts=self._experts_there,
        )  # fmt: skip

    def _multiply_all(self):
        for t in self.tensors:
            self._multiply(t)

    def seconds(self):
        """Of one product."""
        call = self._graph.launch if self._graph else self._multiply_all
        return timing.seconds_of(self._device, call) / len(self.tensors)

    def error(self):
        """The largest of sampled values."""
        self._multiply(self.tensors[0])
        out, x = asnumpy(self._out), asnumpy(self._x).astype(np.float64)
        worst = 0.0
        for row in {0, len(x) // 2, len(x) - 1}:
            t = self.tensors[0] if self._experts is None else self.tensors[0][self._experts[row]]
            for part in (slice(0, 16), slice(t.shape[0] - 16, t.shape[0])):
                weights = timing.host_values(t[part]).astype(np.float64)
                norms = np.linalg.norm(weights, axis=1) * np.linalg.norm(x[row])
                apart = np.abs(out[row, part] - weights @ x[row]) / norms
                worst = max(worst, float(apart.max()) * x.shape[1] ** 0.5)
        return worst


def small_copy_speed(device: str, n_bytes: int, rounds: int) -> float:
    """Bytes a second, read and written, of a GPU's copies that each move `n_bytes`, as many as a product
    reads, in a graph as the products are: what launches leave of a large copy's speed."""
    half = n_bytes // 2
    n_copies = max(1, ROTATED_BYTES // n_bytes)
    there = timing.kernel_device(device)
    with _stream(device) as stream:
        source, target = (there.empty((n_copies, half), np.dtype(np.uint8)) for _ in range(2))
        noise = np.random.default_rng(1).integers(0, 256, 1 << 22, dtype=np.uint8)
        timing.fill(device, source, noise)
        there.synchronise()
        stream.begin_capture()
        for i in range(n_copies):
            there.copy_flat(target[i], source[i])
        graph = stream.end_capture()
        times = [timing.seconds_of(device, graph.launch) for _ in range(rounds)]
    return 2 * half * n_copies / statistics.median(times)


def host_seconds(
    device: str, name: str, n_rows: int = 16384, columns: int = 4096, repeat: int = 200
) -> float:
    """Seconds that one call on a GPU takes the host."""
    with Pool("16MiB", device=device) as pool:
        t = timing.blocks(device, name, (n_rows, columns), 1)
        x = timing.normal(device, (1, columns), np.float32, 7)
        out = devices.get(device).empty((1, n_rows), np.dtype(np.float32))
        quant.matmul(x, t, pool=pool, out=out)
        devices.get(device).synchronise()
        start = time.perf_counter()
        for _ in range(repeat):
            quant.matmul(x, t, pool=pool, out=out)
        seconds = (time.perf_counter() - start) / repeat
        devices.get(device).synchronise()
    return seconds


def format_row(row: dict[str, Any]) -> str:
    middle = statistics.median(row["seconds"])
    spread = (max(row["seconds"]) - min(row["seconds"])) / middle
    shape = "x".join(
        map(str, ((row["n_expert"],) if row["n_expert"] else ()) + tuple(row["shape"]))
    )
    return (
        f"{row['type']:8}{shape:>16}{row['n']:6}{middle * 1e6:11.1f}{row['bytes'] / middle / 1e9:8.0f}"
        f"{row['of_copy']:9.2f}{row['tops']:8.1f}{spread:8.1%}{row['error']:9.4f}"
    )


HEADER = (
    f"{'matmul':8}{'weights':>16}{'n':>6}{'us':>11}{'GB/s':>8}{'of copy':>9}{'TOP/s':>8}{'spread':>8}"
    f"{'error':>9}"
)
