"""Sums, multiples and casts of rows on the CPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import types

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from lowlevel.shapes import dtype_name

from . import frame
from .convert import row_converter

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.devices import Device


_ZERO = np.float32(0)
read_i32 = simd.make_read_at(types.int32, ir.IntType(32))


@kernel(inline=True)
def add_row(x, y, target, columns):
    """A row of ``x + y``, by addresses."""
    whole = columns - columns % 16
    left = columns - whole
    for i in range(0, whole, 16):
        simd.write_f32x16(target, i, simd.read_f32x16(x, i) + simd.read_f32x16(y, i))
    if left:
        v = simd.read_first_f32(x, whole, left, _ZERO)
        v = v + simd.read_first_f32(y, whole, left, _ZERO)
        simd.write_first_f32(target, whole, v, left)


@kernel(inline=True)
def _add_rows(integers, floats, first, stop):
    ids, id_step, plane_rows, columns = integers[9], integers[10], integers[11], integers[12]
    for row in range(first, stop):
        x = frame.row_address(integers, 0, row, plane_rows)
        if ids == 0:
            y = frame.row_address(integers, 3, row, plane_rows)
        else:
            y = integers[3] + np.int64(read_i32(ids + row * id_step)) * integers[5]
        add_row(x, y, frame.row_address(integers, 6, row, plane_rows), columns)


_add = frame.rows_kernel(_add_rows)


def add(
    device: Device, x: Rows, y: Rows, row_ids: np.ndarray | None, out: Rows, n_threads: int | None
) -> None:
    """See `lowlevel.ops.add`; x, y and out as `lowlevel.checks.Rows`."""
    _, plane_rows, columns = x.shape
    ids, id_step = frame.address(row_ids), 0
    if row_ids is not None:
        check_ids(row_ids, y.shape[1], "row_ids", "y")
        id_step = row_ids.strides[0]
    integers = (
        *frame.place(x),
        *frame.place(y),
        *frame.place(out),
        ids,
        id_step,
        plane_rows,
        columns,
    )
    n_rows = x.n_rows if columns else 0
    frame.run(_add, integers, (0,), n_rows, 12 * columns, n_threads)


def check_ids(ids: np.ndarray, n: int, name: str, of: str) -> None:
    """Raise IndexError for an id that is none of 0 to n - 1."""
    if not len(ids):
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= n:
        raise IndexError(
            f"{name}: {of} has rows 0 to {n - 1}; got {lowest if lowest < 0 else highest}"
        )


@functools.cache
def _cast_kernel(source, target):
    convert = row_converter(source, target)

    @kernel(inline=True)
    def cast_rows(integers, floats, first, stop):
        for row in range(first, stop):
            convert(
                frame.row_address(integers, 0, row, integers[6]),
                frame.row_address(integers, 3, row, integers[6]),
                integers[7],
                floats[0],
            )

    return frame.rows_kernel(cast_rows)


def _convert(source, target, factor, n_threads):
    kinds = dtype_name(source.array.dtype), dtype_name(target.array.dtype)
    _, plane_rows, columns = source.shape
    integers = (*frame.place(source), *frame.place(target), plane_rows, columns)
    row_bytes = columns * (source.array.itemsize + target.array.itemsize)
    n_rows = source.n_rows if columns else 0
    frame.run(_cast_kernel(*kinds), integers, (factor,), n_rows, row_bytes, n_threads)


def scale(device: Device, x: Rows, factor: float, n_threads: int | None) -> None:
    """See `lowlevel.ops.scale`; x as `lowlevel.checks.Rows`."""
    _convert(x, x, factor, n_threads)


def cast(device: Device, source: Rows, target: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.cast`; both as `lowlevel.checks.Rows`."""
    _convert(source, target, 1.0, n_threads)
