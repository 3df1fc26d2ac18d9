"""Root mean square normalisation on the CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import frame
from .elementwise import add_row

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.devices import Device


_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel(inline=True)
def _sum_of_squares(source, columns):
    """Of a row, in four chains of 16 lanes."""
    a = simd.splat(_ZERO)
    b, c, d = a, a, a
    whole = columns - columns % 64
    for i in range(0, whole, 64):
        v = simd.read_f32x16(source, i)
        w = simd.read_f32x16(source, i + 16)
        a = simd.fma(v, v, a)
        b = simd.fma(w, w, b)
        v = simd.read_f32x16(source, i + 32)
        w = simd.read_f32x16(source, i + 48)
        c = simd.fma(v, v, c)
        d = simd.fma(w, w, d)
    for i in range(whole, columns, 16):
        v = simd.read_first_f32(source, i, min(16, columns - i), _ZERO)
        a = simd.fma(v, v, a)
    return simd.sum_lanes((a + b) + (c + d))


@kernel(inline=True)
def _norm_row(source, target, weight, columns, eps):
    whole = columns - columns % 16
    left = columns - whole
    mean = _sum_of_squares(source, columns) / np.float32(columns)
    factor = _ONE / np.float32(math.sqrt(mean + eps))
    if weight == 0:
        for i in range(0, whole, 16):
            simd.write_f32x16(target, i, simd.read_f32x16(source, i) * factor)
    else:
        for i in range(0, whole, 16):
            v = simd.read_f32x16(source, i) * factor
            simd.write_f32x16(target, i, v * simd.read_f32x16(weight, i))
    if left:
        v = simd.read_first_f32(source, whole, left, _ZERO) * factor
        if weight != 0:
            v = v * simd.read_first_f32(weight, whole, left, _ZERO)
        simd.write_first_f32(target, whole, v, left)


@kernel(inline=True)
def _norm_rows(integers, floats, first, stop):
    weight, plane_rows, columns = integers[9], integers[10], integers[11]
    for row in range(first, stop):
        source = frame.row_address(integers, 0, row, plane_rows)
        if integers[6] != 0:  # a row is still in the cache when its norm is taken
            add_row(source, frame.row_address(integers, 6, row, plane_rows), source, columns)
        target = frame.row_address(integers, 3, row, plane_rows)
        _norm_row(source, target, weight, columns, floats[0])


_norm = frame.rows_kernel(_norm_rows)


def rms_norm(
    device: Device,
    x: Rows,
    add: Rows | None,
    weight: np.ndarray | None,
    eps: float,
    out: Rows,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.rms_norm`; x, add and out as `lowlevel.checks.Rows`."""
    _, plane_rows, columns = x.shape
    addends = (0, 0, 0) if add is None else frame.place(add)
    places = (*frame.place(x), *frame.place(out), *addends)
    integers = (*places, frame.address(weight), plane_rows, columns)
    n_rows = x.n_rows if columns else 0
    row_bytes = 8 * columns if add is None else 16 * columns
    frame.run(_norm, integers, (eps,), n_rows, row_bytes, n_threads)
