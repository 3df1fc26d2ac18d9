"""Rows by index on the CPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from lowlevel.shapes import dtype_name

from . import frame
from .convert import row_converter
from .elementwise import check_ids, read_i32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.checks import Rows
    from lowlevel.devices import Device
    from lowlevel.plans import Scratch


_ZERO, _ONE = np.float32(0), np.float32(1)
# Columns that one task of `scatter_add` with ids takes through all rows.
SLAB = 256


@functools.cache
def _gather_kernel(source, target):
    convert = row_converter(source, target)

    @kernel(inline=True)
    def gather_rows(integers, floats, first, stop):
        for row in range(first, stop):
            row_id = np.int64(read_i32(integers[4] + row * integers[5]))
            table, out = integers[0] + row_id * integers[1], integers[2] + row * integers[3]
            convert(table, out, integers[6], _ONE)

    return frame.rows_kernel(gather_rows)


def gather(device: Device, table: Rows, ids: np.ndarray, out: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.gather_rows`; table and out as `lowlevel.checks.Rows`."""
    check_ids(ids, table.shape[1], "ids", "table")
    _, n_rows, columns = out.shape
    integers = (
        frame.address(table.array), table.row, frame.address(out.array), out.row,
        frame.address(ids), ids.strides[0], columns,
    )  # fmt: skip
    rows = _gather_kernel(dtype_name(table.array.dtype), dtype_name(out.array.dtype))
    row_bytes = columns * (table.array.itemsize + out.array.itemsize)
    frame.run(rows, integers, (0,), n_rows, row_bytes, n_threads)


@functools.cache
def _put_kernel(source, target):
    convert = row_converter(source, target)

    @kernel(inline=True)
    def put_rows(integers, floats, first, stop):
        plane_rows = integers[7]
        for index in range(first, stop):
            plane, row = index // plane_rows, index % plane_rows
            row_id = np.int64(read_i32(integers[4] + row * integers[5]))
            place = integers[2] + plane * integers[9] + row_id * integers[3]
            convert(integers[0] + plane * integers[8] + row * integers[1], place, integers[6], _ONE)

    return frame.rows_kernel(put_rows)


def put(device: Device, rows: Rows, ids: np.ndarray, out: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.put_rows`; rows and out as `lowlevel.checks.Rows`."""
    check_ids(ids, out.shape[1], "ids", "out")
    _, plane_rows, columns = rows.shape
    integers = (
        frame.address(rows.array), rows.row, frame.address(out.array), out.row,
        frame.address(ids), ids.strides[0], columns, plane_rows, rows.plane, out.plane,
    )  # fmt: skip
    run = _put_kernel(dtype_name(rows.array.dtype), dtype_name(out.array.dtype))
    row_bytes = columns * (rows.array.itemsize + out.array.itemsize)
    frame.run(run, integers, (0,), rows.n_rows, row_bytes, n_threads)


def scatter_scratch(n_rows: int, n_tokens: int) -> Scratch:
    """What `scatter_add` takes: see `lowlevel.ops.ScatterPlan.scratch`. Nothing here."""
    return ()


@kernel(inline=True)
def _weight_of(weights, row):
    return simd.splat(_ONE if weights == 0 else simd.read_f32(weights, row))


@kernel(inline=True)
def _add_in_order(integers, floats, first, stop):
    """Tasks are tokens: the sum of 16 columns stays in a register over their rows."""
    source, row_step, out, out_step = integers[0], integers[1], integers[2], integers[3]
    weights, of_token, columns = integers[6], integers[8], integers[9]
    for token in range(first, stop):
        target = out + token * out_step
        for i in range(0, columns, 16):
            n = min(16, columns - i)
            total = simd.read_first_f32(target, i, n, _ZERO)
            for row in range(token * of_token, (token + 1) * of_token):
                value = simd.read_first_f32(source + row * row_step, i, n, _ZERO)
                total = simd.fma(_weight_of(weights, row), value, total)
            simd.write_first_f32(target, i, total, n)


@kernel(inline=True)
def _add_slabs(integers, floats, first, stop):
    """Tasks are slabs of columns: each goes through all rows in their order."""
    source, row_step, out, out_step = integers[0], integers[1], integers[2], integers[3]
    tokens, token_step, weights = integers[4], integers[5], integers[6]
    n_rows, columns = integers[7], integers[9]
    for slab in range(first, stop):
        low, high = slab * SLAB, min((slab + 1) * SLAB, columns)
        for row in range(n_rows):
            token = np.int64(read_i32(tokens + row * token_step))
            weight = _weight_of(weights, row)
            at, target = source + row * row_step, out + token * out_step
            for i in range(low, high, 16):
                n = min(16, high - i)
                total = simd.read_first_f32(target, i, n, _ZERO)
                value = simd.read_first_f32(at, i, n, _ZERO)
                simd.write_first_f32(target, i, simd.fma(weight, value, total), n)


_in_order, _slabs = frame.rows_kernel(_add_in_order), frame.rows_kernel(_add_slabs)


def scatter_add(
    device: Device,
    rows: Rows,
    out: Rows,
    tokens: np.ndarray | None,
    weights: np.ndarray | None,
    n_threads: int | None,
    scratch: Sequence[np.ndarray],
) -> None:
    """See `lowlevel.ops.scatter_add`; rows and out as `lowlevel.checks.Rows`."""
    _, n_rows, columns = rows.shape
    n_tokens = out.shape[1]
    if tokens is not None:
        check_ids(tokens, n_tokens, "tokens", "out")
    integers = (
        frame.address(rows.array), rows.row, frame.address(out.array), out.row,
        frame.address(tokens), 0 if tokens is None else tokens.strides[0], frame.address(weights),
        n_rows, n_rows // max(1, n_tokens), columns,
    )  # fmt: skip
    if tokens is None:
        row_bytes = 4 * columns * (2 + integers[8])
        frame.run(_in_order, integers, (0,), n_tokens if columns else 0, row_bytes, n_threads)
    else:
        n_slabs = -(-columns // SLAB) if n_rows else 0
        frame.run(_slabs, integers, (0,), n_slabs, 12 * SLAB * n_rows, n_threads)
