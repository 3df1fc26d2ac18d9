"""Dequantisation on the CPU: finds the runs of a tensor and hands them to threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowlevel.cpu import threads

from .decoders import DECODERS
from .writers import WAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.devices import Device

    from ...tensor import QuantTensor


# Weights per unit, the smallest piece of work; a worker takes a few from the counter at a time.
# With units of a quarter of this, streamed outputs are 4 % slower.
UNIT_WEIGHTS = 1 << 16
GRAB_WEIGHTS = 1 << 18
# Weights between two looks at signals.
SLICE_WEIGHTS = 1 << 24
DTYPES = ("float32", "float16")
# A second thread pays from about this many weights on.
THREAD_WEIGHTS = 1 << 18
# Outputs of this size do not fit the caches anyway: they are written past them. Two threads whose CPUs
# share a link to memory would write through the caches 2 to 14 % faster at 64 MiB (the end of the
# output stays in the last cache), but 35 % slower where each has its own.
STREAM_BYTES = 32 << 20


class Runs(NamedTuple):
    """The runs of a tensor: see quant/cpu/dequantize/runs.py.

    Attributes
    ----------
    axes : list of (size, source stride, destination stride)
        Slowest first.
    n_blocks : int
        Blocks in one run.
    """

    axes: list
    n_blocks: int


def find_runs(
    shape: Sequence[int],
    source_strides: Sequence[int],
    destination_strides: Sequence[int],
    row_blocks: int,
    block_bytes: int,
    block_out: int,
) -> Runs:
    """Join rows and leading axes that follow each other without a gap on both sides.

    Parameters
    ----------
    shape, source_strides, destination_strides : sequences of int
        Of the leading axes, rows included; strides in bytes.
    row_blocks, block_bytes, block_out : int
        Blocks per row, bytes of a block, bytes of its weights.

    Returns
    -------
    Runs
    """
    axes: list[tuple[int, int, int]] = []
    n_blocks = row_blocks
    for axis in reversed(list(zip(shape, source_strides, destination_strides, strict=True))):
        size, source, destination = axis
        if size == 1:
            continue
        if not axes and (source, destination) == (n_blocks * block_bytes, n_blocks * block_out):
            n_blocks *= size
        elif axes and (source, destination) == (axes[0][0] * axes[0][1], axes[0][0] * axes[0][2]):
            axes[0] = (axes[0][0] * size, *axes[0][1:])
        else:
            axes.insert(0, axis)
    return Runs(axes, n_blocks)


def best_way(out: np.ndarray, runs: Runs) -> str:
    """The way in WAYS to write `out`: past the caches if it is large and aligned enough."""
    if out.nbytes < STREAM_BYTES:
        return "cached"
    steps = [out.ctypes.data, *(axis[2] for axis in runs.axes)]
    aligned = [way for way in WAYS if all(step % WAYS[way].alignment == 0 for step in steps)]
    return max(aligned, key=lambda way: WAYS[way].alignment)


class Work(NamedTuple):
    """Arguments of a decoder's kernel, as quant/cpu/dequantize/runs.py describes them."""

    source: int
    destination: int
    axes: np.ndarray
    run: np.ndarray
    task: np.ndarray


def plan_work(t: QuantTensor, out: np.ndarray, runs: Runs, n_workers: int) -> Work:
    """Cut the runs of a QuantTensor into units: a `Work`."""
    block = t.format
    unit_blocks = min(runs.n_blocks, UNIT_WEIGHTS // block.block_weights)
    run_units = -(-runs.n_blocks // unit_blocks)
    n_units = t.n_rows * block.row_blocks(t.columns) // runs.n_blocks * run_units
    unit_weights = unit_blocks * block.block_weights
    grab = min(max(1, GRAB_WEIGHTS // unit_weights), -(-n_units // (4 * n_workers)))
    block_out = block.block_weights * out.itemsize
    return Work(
        source=t.data.ctypes.data,
        destination=out.ctypes.data,
        axes=np.array(runs.axes, np.int64).reshape(-1, 3),
        run=np.array(
            (runs.n_blocks, unit_blocks, run_units, block.block_bytes, block_out), np.int64
        ),
        task=np.array((n_units, grab, max(1, SLICE_WEIGHTS // unit_weights)), np.int64),
    )


def resolve_n_threads(n_threads: int | None, device: Device) -> int:
    """Threads of a call."""
    return threads.resolve_n_threads(n_threads)


def dequantize(
    t: QuantTensor, out: np.ndarray, n_threads: int, device: Device | None = None
) -> None:
    """Decode a QuantTensor into `out`, both checked: see quant/dequantize.py."""
    block = t.format
    block_out = block.block_weights * out.itemsize
    runs = find_runs(
        t.shape[:-1],
        t.data.strides[:-1],
        out.strides[:-1],
        block.row_blocks(t.columns),
        block.block_bytes,
        block_out,
    )
    way = best_way(out, runs)
    decode = DECODERS[block.name].kernels[out.dtype.name, way]
    n_workers = min(n_threads, -(-t.size // THREAD_WEIGHTS))
    work = plan_work(t, out, runs, n_workers)
    counter = np.zeros(1, np.int64)

    def worker(i):
        return decode(*work, counter)

    threads.run_workers(n_workers, worker, counter)
