"""Q2_K: a super-block of 16 x 16 weights of two bits, each 16 with a scale and a minimum."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import TABLE

FORMAT = block_format("Q2_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
SCALES, QS, D, DMIN = FORMAT.offsets("scales", "qs", "d", "dmin")
# The two bits at the same place in all 64 bytes belong to four sub-blocks of 16. One table holds
# the four values of each of these; the upper two bits of a code say which sub-block it is.
_VALUES = np.array([0, 1, 2, 3] * 4, np.float32)
_SUB_BLOCK = np.repeat(np.array([0, 1, 8, 9], np.int32), 4)
_TABLE_PART = np.repeat(np.array([0, 4, 8, 12], np.int32) * 0x01010101, 4)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    values = simd.load_f32x16(_VALUES, 0)
    table_part = simd.load_i32x16(_TABLE_PART, 0)
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        scales = simd.widen(simd.read_u8x16(block + SCALES))
        dl = simd.to_f32(scales & 15) * simd.splat_half(simd.read_u16(block + D))
        ml = simd.to_f32(scales >> 4) * simd.splat_half(simd.read_u16(block + DMIN))
        ml = simd.negate(ml)
        q = simd.as_i32x16(simd.read_u8x64(block + QS))
        for pair in range(4):
            which = simd.load_i32x16(_SUB_BLOCK, 0) + 2 * pair
            # d * scale * q has at most 17 significant bits: the product is exact
            table = simd.multiply_add(simd.lookup16(dl, which), values, simd.lookup16(ml, which))
            codes = simd.as_u8x64((q >> (2 * pair)) & 0x03030303 | table_part)
            index = i * BLOCK_WEIGHTS + 32 * pair
            write(destination, index, table, simd.lower_half(codes))
            write(destination, index + 128, table, simd.upper_half(codes))


DECODER = make_decoder(decode_blocks, TABLE, BLOCK_WEIGHTS)
