"""Rotary position embedding on the CPU: 16 pairs of a token side by side, their angles made once for all heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import frame
from .elementwise import read_i32

if TYPE_CHECKING:
    from lowlevel.devices import Device
    from lowlevel.ops.rope import RopeFrequencies


_ZERO, _ONE = np.float32(0), np.float32(1)
_RADIANS = np.float32(2 * math.pi / 2**32)  # of a 2**-32 turn
# Cephes sinf and cosf, on angles of up to an eighth of a turn.
_SIN = tuple(np.float32(c) for c in (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
_COS = tuple(
    np.float32(c) for c in (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
)
_MINUS_HALF = np.float32(-0.5)


@kernel(inline=True)
def _sine_and_cosine(turns):
    """Of angles in 2**-32 turns, i32x16: first the quarter of a turn, then what is left of it."""
    quarter = (turns + 0x20000000) >> 30
    angle = simd.to_f32(turns - (quarter << 30)) * _RADIANS
    square = angle * angle
    s = simd.fma(simd.splat(_SIN[0]), square, simd.splat(_SIN[1]))
    s = simd.fma(s, square, simd.splat(_SIN[2]))
    s = simd.fma(s * square, angle, angle)
    c = simd.fma(simd.splat(_COS[0]), square, simd.splat(_COS[1]))
    c = simd.fma(c, square, simd.splat(_COS[2]))
    c = simd.fma(c * square, square, simd.fma(square, simd.splat(_MINUS_HALF), simd.splat(_ONE)))
    odd = (quarter & 1) == 1
    sine, cosine = simd.select(odd, c, s), simd.select(odd, s, c)
    sine = simd.select((quarter & 2) == 2, simd.negate(sine), sine)
    return sine, simd.select(((quarter + 1) & 2) == 2, simd.negate(cosine), cosine)


@kernel(inline=True)
def _fma(a, b, c):
    """``a * b + c`` with one rounding, as lanes do it: the same bits."""
    return simd.extract(simd.fma(simd.splat(a), simd.splat(b), simd.splat(c)), 0)


@kernel(inline=True)
def _turn_scalars(first, second, step, n, sine, cosine):
    """Pairs whose items lie `step` bytes apart from those of the next pair."""
    sines, cosines = simd.spill(sine), simd.spill(cosine)
    for i in range(n):
        at, beside = first + i * step, second + i * step
        a, b = simd.read_f32(at, 0), simd.read_f32(beside, 0)
        s, c = simd.read_f32(sines, i), simd.read_f32(cosines, i)
        simd.write_at(at, _fma(a, c, np.float32(-np.float32(b * s))))
        simd.write_at(beside, _fma(a, s, np.float32(b * c)))


def _rope_kernel(halves):
    @kernel(inline=True)
    def turn_head(x, item, n, n_pairs, sine, cosine):
        """`n` pairs of one head, the first of them at address `x` (of its first item)."""
        second = x + (n_pairs if halves else 1) * item
        if item != 4 or n < 16:
            _turn_scalars(x, second, item if halves else 2 * item, n, sine, cosine)
        elif halves:
            a, b = simd.read_f32x16(x, 0), simd.read_f32x16(second, 0)
            simd.write_f32x16(x, 0, simd.fma(a, cosine, simd.negate(b * sine)))
            simd.write_f32x16(second, 0, simd.fma(a, sine, b * cosine))
        else:
            low, high = simd.read_f32x16(x, 0), simd.read_f32x16(x, 16)
            a, b = simd.even_lanes(low, high), simd.odd_lanes(low, high)
            c = simd.fma(a, cosine, simd.negate(b * sine))
            d = simd.fma(a, sine, b * cosine)
            simd.write_f32x16(x, 0, simd.zip_low(c, d))
            simd.write_f32x16(x, 16, simd.zip_high(c, d))

    @kernel(inline=True)
    def rope_rows(integers, floats, first, stop):
        x, head_step, token_step, item = integers[0], integers[1], integers[2], integers[3]
        positions, position_step, turns = integers[4], integers[5], integers[6]
        n_heads, n_pairs = integers[7], integers[8]
        for token in range(first, stop):
            position = np.int64(read_i32(positions + token * position_step))
            for pair in range(0, n_pairs, 16):
                n = min(16, n_pairs - pair)
                angles = simd.turn(turns + 8 * pair, n, position)
                sine, cosine = _sine_and_cosine(angles)
                sine, cosine = sine * floats[0], cosine * floats[0]
                at = x + token * token_step + (pair if halves else 2 * pair) * item
                for head in range(n_heads):
                    turn_head(at + head * head_step, item, n, n_pairs, sine, cosine)

    return frame.rows_kernel(rope_rows)


_KERNELS = {halves: _rope_kernel(halves) for halves in (False, True)}


def rope(
    device: Device,
    x: np.ndarray,
    positions: np.ndarray,
    frequencies: RopeFrequencies,
    halves: bool,
    offset: int,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.rope`."""
    n_heads, n_tokens, _ = x.shape
    turns = frequencies.turns
    if len(turns) > 1 and turns.strides[0] != 8:
        raise ValueError(f"frequencies: must be contiguous; their stride is {turns.strides[0]}")
    x_address = frame.address(x) + offset * x.strides[2]
    integers = (
        x_address, *x.strides, frame.address(positions), positions.strides[0], frame.address(turns),
        n_heads, len(turns),
    )  # fmt: skip
    row_bytes = 16 * n_heads * len(turns)
    n_rows = n_tokens if n_heads else 0
    frame.run(_KERNELS[halves], integers, (frequencies.magnitude,), n_rows, row_bytes, n_threads)
