"""Walking the blocks of a tensor: what the dequantising kernels of all formats share.

A format's file has one inlined kernel, ``decode_blocks(write, source, n_blocks, destination)``,
which decodes `n_blocks` consecutive blocks at address `source` and hands the weights to `write`
(see writers.py). `make_decoder` builds the format's compiled kernels from it.

All addresses are int64, in bytes: a kernel is compiled once whatever strides, alignment or
read-only flags the caller's arrays have.

Blocks that lie side by side in the source, and their weights in the destination, make a run: a
whole contiguous tensor is one. Threads take units of a run from a shared counter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numba import types

from lowlevel.cpu import simd
from lowlevel.cpu.jit import c_kernel, kernel

if TYPE_CHECKING:
    from collections.abc import Mapping


class Decoder(NamedTuple):
    """The kernels of a format.

    Attributes
    ----------
    kernels : dict
        From (output type, way) to ``decode(source, destination, axes, run, task, counter)``, see
        `_decode_units`; ways as in writers.py.
    fill : CKernel
        Decodes rows to float32, see lowlevel/attention/kv_source.py.
    decode_f32 : inlined kernel
        ``decode_f32(source, n_blocks, destination)``, for use in other kernels.
    """

    kernels: dict
    fill: object
    decode_f32: object


@kernel(inline=True)
def _decode_units(decode_blocks, write, source, destination, axes, run, task, counter):
    """Decode units taken from `counter` until none are left or `task`'s slice is done.

    Parameters
    ----------
    decode_blocks, write : inlined kernels
    source, destination : int64
        Addresses of the first block and the first weight.
    axes : int64 array (n_axes, 3)
        Axes that tell the runs apart, slowest first: size, source stride, destination stride
        (bytes). Empty if there is one run.
    run : int64 array (5,)
        Of one run: its blocks, blocks per unit, units; source and destination bytes per block.
    task : int64 array (3,)
        Number of units of all runs; how many to take at once; how many make a slice.
    counter : int64 array (1,)

    Returns
    -------
    bool
        False when no unit is left.
    """
    run_blocks, unit_blocks, run_units = run[0], run[1], run[2]
    block_bytes, block_out = run[3], run[4]
    n_units, grab, slice_units = task[0], task[1], task[2]
    taken = 0
    while taken < slice_units:
        first = simd.take_task(counter, grab)
        if first >= n_units:
            return False
        taken += grab
        for unit in range(first, min(first + grab, n_units)):
            which = unit // run_units
            block = (unit - which * run_units) * unit_blocks
            unit_source = source + block * block_bytes
            unit_destination = destination + block * block_out
            for axis in range(len(axes) - 1, -1, -1):
                at = which % axes[axis, 0]
                which //= axes[axis, 0]
                unit_source += at * axes[axis, 1]
                unit_destination += at * axes[axis, 2]
            n_blocks = min(unit_blocks, run_blocks - block)
            decode_blocks(write, unit_source, n_blocks, unit_destination)
    return True


def _make_decode(decode_blocks, write):
    @kernel
    def decode(source, destination, axes, run, task, counter):
        more = _decode_units(decode_blocks, write, source, destination, axes, run, task, counter)
        simd.stream_fence()
        return more

    return decode


def _make_fill(decode_f32, block_weights):
    # Pointers travel as int64: rows may lie at negative or zero strides, which arrays would wrap.
    @c_kernel(types.void(*[types.int64] * 6))
    def fill(source, row_stride, n_rows, n_columns, destination, stride):
        for row in range(n_rows):
            decode_f32(
                source + row * row_stride,
                n_columns // block_weights,
                destination + 4 * row * stride,
            )

    return fill


def make_decoder(decode_blocks: Any, writers: Mapping[str, Any], block_weights: int) -> Decoder:
    """The `Decoder` of a format: `writers` is the family that its `decode_blocks` calls."""
    write_f32 = writers["cached"].float32

    @kernel(inline=True)
    def decode_f32(source, n_blocks, destination):
        decode_blocks(write_f32, source, n_blocks, destination)

    kernels = {
        (dtype, way): _make_decode(decode_blocks, getattr(of_way, dtype))
        for way, of_way in writers.items()
        for dtype in of_way._fields
    }
    return Decoder(kernels, _make_fill(decode_f32, block_weights), decode_f32)
