"""What the decoders of IQ1, IQ2 and IQ3 formats share: weights out of a table's entries."""

from __future__ import annotations

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...grids import EVEN_SIGNS, grid

# Where bit i is brought to be lane i's sign.
_TO_SIGN = np.arange(31, 15, -1, dtype=np.int32)
# By the seven sign bits that stand in a block, all eight.
SIGNS = np.array(EVEN_SIGNS, np.int64)


def entries(name: str) -> np.ndarray:
    """The entries of a grid as int64, of eight bytes each or of four."""
    table = grid(name)
    return table.view(f"<u{table.shape[1]}").reshape(-1).astype(np.int64)


@kernel(inline=True)
def signed_by(weights, signs):
    """`weights` (f32x16), those whose bit of `signs` (16 of them, an int) is set negated."""
    flips = (simd.splat(signs) << simd.load_i32x16(_TO_SIGN, 0)) & -0x80000000
    return simd.as_floats(simd.as_i32x16(weights) ^ flips)


@kernel(inline=True)
def sixteen(low, high, signs, scale):
    """16 weights: eight bytes each of `low` and `high`, times `scale` (float32), with signs."""
    codes = simd.to_f32(simd.widen(simd.bytes_of(low, high)))
    return signed_by(codes * simd.splat(scale), signs)


@kernel(inline=True)
def sixteen_shifted(low, high, low_shift, high_shift, scale):
    """16 weights of IQ1 formats: signed bytes of `low` plus a number, of `high` plus one, times `scale`."""
    codes = simd.to_f32(simd.widen_signed(simd.bytes_of(low, high)))
    shift = simd.select(simd.iota() < simd.splat(8), simd.splat(low_shift), simd.splat(high_shift))
    return (codes + shift) * simd.splat(scale)


@kernel(inline=True)
def read_u32(address):
    """32 bits without a sign, as an int64."""
    return np.int64(simd.read_i32(address)) & 0xFFFFFFFF


@kernel(inline=True)
def fine_scale(d, s):
    """``d * (0.5 + s)`` in float32, exact."""
    return d * (np.float32(0.5) + np.float32(s))
