"""Q4_K: a super-block of 8 x 32 weights of four bits, each 32 with a scale and a minimum."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import TABLE

FORMAT = block_format("Q4_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, DMIN, QS = FORMAT.offsets("d", "dmin", "qs")
_VALUES = np.arange(16, dtype=np.float32)
# The six-bit scales and minima come out as one vector, scales in lanes 0-7, minima in lanes 8-15:
# ((b[FIRST_AT] >> FIRST_SHIFT) & FIRST_MASK) | ((b[SECOND_AT] >> 2) & SECOND_MASK),
# b being the first 16 bytes of the block. The first four of each lie whole in one byte; of the
# others four bits lie together, the upper two in the bytes of the first four.
_FIRST_AT = np.array([*range(4, 8), *range(12, 16), *range(8, 12), *range(12, 16)], np.int32)
_FIRST_SHIFT = np.array([0] * 12 + [4] * 4, np.int32)
_FIRST_MASK = np.array([63] * 4 + [15] * 4 + [63] * 4 + [15] * 4, np.int32)
_SECOND_AT = np.array([0] * 4 + [*range(4, 8)] + [0] * 4 + [*range(8, 12)], np.int32)
_SECOND_MASK = np.array([0] * 4 + [48] * 4 + [0] * 4 + [48] * 4, np.int32)
_IS_MINIMUM = np.array([0] * 8 + [1] * 8, np.int32)


@kernel(inline=True)
def decode_scales(block):
    """The 8 scales and 8 minima as one i32x16, 0 to 63."""
    packed = simd.widen(simd.read_u8x16(block))
    first = simd.lookup16(packed, simd.load_i32x16(_FIRST_AT, 0))
    second = simd.lookup16(packed, simd.load_i32x16(_SECOND_AT, 0))
    first = first >> simd.load_i32x16(_FIRST_SHIFT, 0)
    first = first & simd.load_i32x16(_FIRST_MASK, 0)
    return first | (second >> 2) & simd.load_i32x16(_SECOND_MASK, 0)


@kernel(inline=True)
def decode_factors(block):
    """d * scale of each sub-block in the first eight lanes, -dmin * minimum in the others; Q5_K's too."""
    is_scale = simd.load_i32x16(_IS_MINIMUM, 0) < simd.splat(1)
    d = simd.splat_half(simd.read_u16(block + D))
    dmin = simd.splat_half(simd.read_u16(block + DMIN))
    return simd.to_f32(decode_scales(block)) * simd.select(is_scale, d, simd.negate(dmin))


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    values = simd.load_f32x16(_VALUES, 0)
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        factors = simd.spill(decode_factors(block))
        for pair in range(4):
            q = simd.read_u8x32(block + QS + 32 * pair)
            for part in range(2):
                sub_block = 2 * pair + part
                # d * scale * q has at most 21 significant bits: the product is exact
                table = simd.multiply_add(
                    simd.splat(simd.read_f32(factors, sub_block)),
                    values,
                    simd.splat(simd.read_f32(factors, 8 + sub_block)),
                )
                codes = (q >> (4 * part)) & 15
                write(destination, i * BLOCK_WEIGHTS + 32 * sub_block, table, codes)


DECODER = make_decoder(decode_blocks, TABLE, BLOCK_WEIGHTS)
