"""Copies between arrays of any strides, cut into launches of the kernels of concat.cu.

An array's item is bytes: an axis of its own, which joins its neighbours where they lie without a
gap. The widest unit that divides everything is what a thread copies at once.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.axes import join_axes, parts

from .instances import COPY, JOIN, JOIN_SOURCES, TRANSPOSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


MAX_AXES = 8
# Units that one launch copies: their number is counted in 32 bits, with a bit to spare.
MAX_UNITS = 2**31 - 256
AXES = np.dtype(
    [
        (
            "axes",
            [("source_stride", "<i8"), ("target_stride", "<i8")]
            + [("length", "<u4"), ("multiplier", "<u4")],
            (MAX_AXES,),
        ),
        ("n_axes", "<i4"),
        ("shifts", "u1", (3, 4)),
    ]
)
TRANSPOSED_LAYOUT = np.dtype(
    [("tiles", AXES), ("source_stride", "<i8"), ("target_stride", "<i8")]
    + [("target_length", "<u4"), ("source_length", "<u4")]
)
TILE = 64  # units along either axis: the kernel's kTile
# Both axes of a transposed copy must be this long: else most of its tiles would be empty.
LEAST_TRANSPOSED = 16
ROWS = np.dtype(
    [("strides", "<i8", (JOIN_SOURCES,)), ("ends", "<u4", (JOIN_SOURCES,))]
    + [("multiplier", "<u4"), ("shift", "<u4")]
)
VECTOR = 16  # bytes that a thread writes of joined rows
# Parts of rows longer than this are as fast copied one source after the other.
LONG_ROW = 4096


def join(device: LaunchDevice, target: Array, sources: Sequence[Array], axis: int) -> None:
    """Copy `sources` into `target` one after the other along `axis`, all on `device`.

    Rows whose parts are short are written whole, by one launch: the parts of several sources then share
    what memory moves at once.
    """
    if not _join_whole(device, target, sources, axis):
        for part, source in parts(target, sources, axis):
            copy(device, part, source)


def _join_whole(device, target, sources, axis):
    """Whether one launch could do it, and has."""
    sources = [source for source in sources if source.size]
    if not 2 <= len(sources) <= JOIN_SOURCES or not target.flags.c_contiguous:
        return False
    rows, lengths = [], []
    item = target.dtype.itemsize
    for source in sources:
        run = join_axes((*source.shape[axis:], item), (*source.strides[axis:], 1))
        lead = join_axes(source.shape[:axis], source.strides[:axis])
        if len(lead) != 1 or len(run) > 1 or any(stride != 1 for _, stride in run):
            return False
        rows.append(lead[0])
        lengths.append(run[0][0] if run else 1)
    (n_rows,) = {length for length, _ in rows}
    strides = [stride for _, stride in rows]
    return _join_rows(device, target, sources, n_rows, strides, lengths, min(lengths) <= LONG_ROW)


def _join_rows(device, target, sources, n_rows, strides, lengths, wide=False):
    """Launch join_rows if it is the faster way, `wide`: for units of 16 bytes too.

    Each source has `n_rows` rows, its `strides` apart, and gives its `lengths` of bytes to each row of
    `target`, which has no gaps.
    """
    addresses = [device.address(source) for source in sources]
    unit = _common_unit(*addresses, *strides, *lengths)
    n_units = n_rows * sum(lengths) // unit
    if device.address(target) % VECTOR or n_units > MAX_UNITS or (unit == VECTOR and not wide):
        return False
    rows = np.zeros((), ROWS)
    missing = JOIN_SOURCES - len(sources)
    rows["strides"] = [*(stride // unit for stride in strides), *[0] * missing]
    ends = np.cumsum(lengths) // unit
    rows["ends"] = [*ends, *[ends[-1]] * missing]
    rows["multiplier"], rows["shift"] = divisor(int(ends[-1]))
    kernel = JOIN[unit]
    n_blocks = -(-n_units * unit // (VECTOR * kernel.block))
    device.launch(kernel, n_blocks, (*sources, *[None] * missing, target, rows, n_units))
    return True


def copy(device: LaunchDevice, target: Array, source: Array) -> None:
    """Copy `source` into `target`, both on `device`, of one dtype, without common elements.

    Of one shape, too, but that a source of one plane (the first axis) goes to every plane of the target.
    """
    if not target.size:
        return
    item = target.dtype.itemsize
    source_strides = source.strides
    if target.ndim and source.shape[0] < target.shape[0]:
        source_strides = 0, *source_strides[1:]
    axes = list(_joined(target.shape, source_strides, target.strides, item))
    if not axes or (len(axes) == 1 and axes[0][1:] == (1, 1)):
        device.copy_flat(target, source)
        return
    if len(axes) >= MAX_AXES:
        _copy_by_parts(device, target, source)
        return
    if axes[-1][1:] != (1, 1):  # items of one byte, apart from each other
        axes.append((1, 1, 1))
    strides = (stride for axis in axes[:-1] for stride in axis[1:])
    unit = _common_unit(axes[-1][0], device.address(source), device.address(target), *strides)
    if len(axes) == 2 and axes[0][2] == axes[1][0] > unit:  # rows that are joined in the target
        (n_rows, stride, _), (length, *_) = axes
        if _join_rows(device, target, [source], n_rows, [stride], [length]):
            return
    axes[-1] = (axes[-1][0] // unit, unit, unit)
    axes = [axis for axis in axes if axis[0] > 1]
    if _copy_transposed(device, target, source, axes, unit):
        return
    n_units = target.size * item // unit
    if n_units > MAX_UNITS:
        _copy_by_parts(device, target, source)
        return
    arguments = (source, target, _layout(tuple(axes), unit), n_units)
    kernel = COPY[unit]
    device.launch(kernel, -(-n_units // kernel.block), arguments)


@functools.lru_cache(maxsize=1024)
def _joined(
    shape: tuple, source_strides: tuple, target_strides: tuple, item: int
) -> tuple[tuple[int, ...], ...]:
    """(length, source stride, target stride) of each axis, in bytes, joined with its neighbour where that can be."""
    # The axis that moves least in the target comes last: neighbouring threads write side by side.
    order = sorted(range(len(shape)), key=lambda i: -abs(target_strides[i]))
    axes = join_axes(
        (*(shape[i] for i in order), item),
        (*(source_strides[i] for i in order), 1),
        (*(target_strides[i] for i in order), 1),
    )
    return tuple(map(tuple, axes))


def _copy_by_parts(device, target, source):
    """The two halves of the longest axis, one after the other."""
    axis = max(range(target.ndim), key=lambda i: target.shape[i])
    middle = target.shape[axis] // 2
    for half in (slice(None, middle), slice(middle, None)):
        part = (slice(None),) * axis + (half,)
        copy(device, target[part], source[part] if source.shape[axis] > 1 else source)


def _copy_transposed(device, target, source, axes, unit):
    """Launch copy_transposed if the fastest axis of either array is another one's in the other."""
    *others, (target_length, source_stride, step) = axes
    if step != unit or unit not in TRANSPOSED:
        return False
    along = [axis for axis in others if axis[1] == unit]
    if not along or min(target_length, along[0][0]) < LEAST_TRANSPOSED:
        return False
    source_length, _, target_stride = along[0]
    others.remove(along[0])
    tiles = [
        *others,
        (-(-source_length // TILE), TILE * unit, TILE * target_stride),
        (-(-target_length // TILE), TILE * source_stride, TILE * unit),
    ]
    n_tiles = math.prod(length for length, *_ in tiles)
    if n_tiles > MAX_UNITS:
        return False
    layout = np.zeros((), TRANSPOSED_LAYOUT)
    layout["tiles"] = _layout(tuple(tiles), unit)
    layout["source_stride"], layout["target_stride"] = source_stride // unit, target_stride // unit
    layout["source_length"], layout["target_length"] = source_length, target_length
    device.launch(TRANSPOSED[unit], n_tiles, (source, target, layout))
    return True


def _common_unit(*numbers):
    """The largest of COPY's units that divides them all."""
    return max(unit for unit in COPY if all(number % unit == 0 for number in numbers))


@functools.lru_cache(maxsize=1024)
def _layout(axes, unit):
    """The kernel's Axes for (length, source stride, target stride), slowest first, in bytes; not to be written to."""
    layout = np.zeros((), AXES)
    layout["n_axes"] = len(axes)
    for i, (length, source_stride, target_stride) in enumerate(reversed(axes)):
        multiplier, shift = divisor(length)
        layout["axes"][i] = (source_stride // unit, target_stride // unit, length, multiplier)
        layout["shifts"].reshape(-1)[i] = shift
    layout.flags.writeable = False
    return layout


def divisor(length: int) -> tuple[int, int]:
    """(multiplier, shift) with ``n // length == ((n * multiplier >> 32) + n) >> shift`` for n < 2**31."""
    shift = (length - 1).bit_length()
    return -(-(2 ** (32 + shift)) // length) - 2**32, shift
