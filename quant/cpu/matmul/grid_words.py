"""What the products of IQ1, IQ2 and IQ3 formats share: bytes out of a table's entries, their signs."""

from __future__ import annotations

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...grids import grid
from .bits import byte_masks

# Added to the weights of IQ2 and IQ3 formats, whose entries are up to 62.
SHIFT = 64
_SHIFTS = 0x40404040


def words(name: str, plus: int = 0) -> np.ndarray:
    """The entries of a grid as int32, an entry of eight bytes in two; `plus`: to be added to each byte."""
    return (grid(name) + np.int8(plus)).view("<i4").reshape(-1)


@kernel(inline=True)
def even_signs(seven):
    """Eight sign bits from the lower seven of each lane: their number is even."""
    bits = seven & 127
    parity = bits ^ (bits >> 4)
    parity = parity ^ (parity >> 2)
    return bits | ((parity ^ (parity >> 1)) & 1) << 7


@kernel(inline=True)
def with_signs(v, bits):
    """Four bytes a lane plus SHIFT, those whose bit of `bits` (0 to 3) is set subtracted: none leaves 2 to 126."""
    return v + _SHIFTS - ((v & byte_masks(bits)) << 1)


@kernel(inline=True)
def put_eight(put, state, offset, table, number, signs):
    """Eight weights: entry `number` (i32 lanes) of a table of two words each, with eight signs."""
    first, second = simd.lookup_far_pair(table, number)
    state = put(state, offset, with_signs(first, signs))
    return put(state, offset + 64, with_signs(second, signs >> 4))


@kernel(inline=True)
def odd_multiple(s):
    """``2 s + 1`` as float32 of lanes with a scale of a few bits."""
    return simd.to_f32(s * 2 + 1)


@kernel(inline=True)
def put_eighths(put, state, offset, table, number, minus):
    """Eight weights of IQ1 formats in eighths, plus 16: 8 x (-1, 0 or 1), and 1 or, where `minus` is 1, -1.

    The table's bytes are one more than the weights.
    """
    shifts = minus * -0x02020202 + 0x09090909
    first, second = simd.lookup_far_pair(table, number)
    state = put(state, offset, (first << 3) + shifts)
    return put(state, offset + 64, (second << 3) + shifts)
