"""quant.matmul on a device: how near the memory's speed, and how many operations a second.

On a GPU every case rotates over several tensors, more of them than the second-level cache holds, and
is timed as the replay of a graph of its launches, so that the host's share of a call is not in it.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

import quant
from lowlevel import Pool, asnumpy, devices
from quant.formats import block_format

from . import device_arrays as arrays
from . import timing
from .growing_table import Column

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
        self.tensors = [arrays.blocks(device, name, shape, seed) for seed in range(n_calls)]
        self._x = arrays.normal(device, (n, columns), np.float32, 7)
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
        return timing.seconds_of(call, self._device) / len(self.tensors)

    def error(self):
        """The largest of sampled values."""
        self._multiply(self.tensors[0])
        out, x = asnumpy(self._out), asnumpy(self._x).astype(np.float64)
        worst = 0.0
        for row in {0, len(x) // 2, len(x) - 1}:
            t = self.tensors[0] if self._experts is None else self.tensors[0][self._experts[row]]
            for part in (slice(0, 16), slice(t.shape[0] - 16, t.shape[0])):
                weights = arrays.host_values(t[part]).astype(np.float64)
                norms = np.linalg.norm(weights, axis=1) * np.linalg.norm(x[row])
                apart = np.abs(out[row, part] - weights @ x[row]) / norms
                worst = max(worst, float(apart.max()) * x.shape[1] ** 0.5)
        return worst


def small_copy_speed(device: str, n_bytes: int, rounds: int) -> float:
    """Bytes a second, read and written, of a GPU's copies that each move `n_bytes`, as many as a product
    reads, in a graph as the products are: what launches leave of a large copy's speed."""
    half = n_bytes // 2
    n_copies = max(1, ROTATED_BYTES // n_bytes)
    there = arrays.kernel_device(device)
    with _stream(device) as stream:
        source, target = (there.empty((n_copies, half), np.dtype(np.uint8)) for _ in range(2))
        noise = np.random.default_rng(1).integers(0, 256, 1 << 22, dtype=np.uint8)
        arrays.fill(device, source, noise)
        there.synchronise()
        stream.begin_capture()
        for i in range(n_copies):
            there.copy_flat(target[i], source[i])
        graph = stream.end_capture()
        times = [timing.seconds_of(graph.launch, device) for _ in range(rounds)]
    return 2 * half * n_copies / statistics.median(times)


def host_seconds(
    device: str, name: str, n_rows: int = 16384, columns: int = 4096, repeat: int = 200
) -> float:
    """Seconds that one call on a GPU takes the host."""
    with Pool("16MiB", device=device) as pool:
        t = arrays.blocks(device, name, (n_rows, columns), 1)
        x = arrays.normal(device, (1, columns), np.float32, 7)
        out = devices.get(device).empty((1, n_rows), np.dtype(np.float32))
        quant.matmul(x, t, pool=pool, out=out)
        devices.get(device).synchronise()

        def all_calls():
            for _ in range(repeat):
                quant.matmul(x, t, pool=pool, out=out)

        seconds = timing.seconds_of(all_calls) / repeat  # the host's: nobody waits for the device
        devices.get(device).synchronise()
    return seconds


def columns(rows: list[dict[str, Any]]) -> list[Column]:
    """Of the table of some rows."""
    return [
        Column("matmul", lambda row: row["type"], 7, "left"),
        Column("weights", _shape, max(map(len, map(_shape, rows)), default=0)),
        Column("n", lambda row: str(row["n"]), 4),
        Column("us", lambda row: f"{_middle(row) * 1e6:.1f}", 9),
        Column("GB/s", lambda row: f"{row['bytes'] / _middle(row) / 1e9:.0f}", 5),
        Column("of copy", lambda row: f"{row['of_copy']:.2f}"),
        Column("TOP/s", lambda row: f"{row['tops']:.1f}", 6),
        Column("spread", _spread),
        Column("error", lambda row: f"{row['error']:.4f}", 6),
    ]


def _middle(row):
    return statistics.median(row["seconds"])


def _spread(row):
    return f"{(max(row['seconds']) - min(row['seconds'])) / _middle(row):.1%}"


def _shape(row):
    return "x".join(map(str, (*([row["n_expert"]] * bool(row["n_expert"])), *row["shape"])))
