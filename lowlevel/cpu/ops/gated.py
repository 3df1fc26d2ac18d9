"""Gated activations on the CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd, softmax
from lowlevel.cpu.jit import kernel

from . import frame

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.devices import Device


_ZERO, _ONE = np.float32(0), np.float32(1)
_LOWEST = np.float32(-87.0)  # below, `softmax.exp` goes no further down
# gelu(x) = x sigmoid(2 u), u the argument of tanh: no difference of numbers near 1.
_GELU = np.float32(2 * math.sqrt(2 / math.pi))
_GELU_CUBE = np.float32(0.044715)


@kernel(inline=True)
def sigmoid(x):
    """1 / (1 + exp(-x)) of any lanes, 0 below -87; NaN stays NaN."""
    e = softmax.exp(simd.negate(simd.absolute(x)))
    p = simd.divide(simd.splat(_ONE), e + _ONE)
    return simd.select(x < _LOWEST, simd.splat(_ZERO), simd.select(x < _ZERO, e * p, p))


@kernel(inline=True)
def _swiglu(gate, up, floats):
    return gate * sigmoid(gate) * up


@kernel(inline=True)
def _geglu(gate, up, floats):
    cube = simd.fma(gate * gate, simd.splat(_GELU_CUBE), simd.splat(_ONE))
    return gate * sigmoid(gate * _GELU * cube) * up


@kernel(inline=True)
def _clamped_swiglu(gate, up, floats):
    limit = simd.splat(floats[1])
    gate = simd.minimum(limit, gate)  # in this order: a NaN stays
    up = simd.maximum(simd.negate(limit), simd.minimum(limit, up))
    return gate * sigmoid(gate * floats[0]) * (up + _ONE)


def _gated_kernel(activate):
    @kernel(inline=True)
    def gated_rows(integers, floats, first, stop):
        plane_rows, columns = integers[9], integers[10]
        whole = columns - columns % 16
        left = columns - whole
        for row in range(first, stop):
            gate = frame.row_address(integers, 0, row, plane_rows)
            up = frame.row_address(integers, 3, row, plane_rows)
            target = frame.row_address(integers, 6, row, plane_rows)
            for i in range(0, whole, 16):
                g, u = simd.read_f32x16(gate, i), simd.read_f32x16(up, i)
                simd.write_f32x16(target, i, activate(g, u, floats))
            if left:
                g = simd.read_first_f32(gate, whole, left, _ZERO)
                u = simd.read_first_f32(up, whole, left, _ZERO)
                simd.write_first_f32(target, whole, activate(g, u, floats), left)

    return frame.rows_kernel(gated_rows)


_KERNELS = {
    "swiglu": _gated_kernel(_swiglu),
    "geglu": _gated_kernel(_geglu),
    "clamped_swiglu": _gated_kernel(_clamped_swiglu),
}


def gated(
    device: Device,
    kind: str,
    gate: Rows,
    up: Rows,
    out: Rows,
    alpha: float,
    limit: float,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.swiglu` and its siblings; arrays as `lowlevel.checks.Rows`."""
    _, plane_rows, columns = gate.shape
    integers = (*frame.place(gate), *frame.place(up), *frame.place(out), plane_rows, columns)
    n_rows = gate.n_rows if columns else 0
    frame.run(_KERNELS[kind], integers, (alpha, limit), n_rows, 12 * columns, n_threads)
