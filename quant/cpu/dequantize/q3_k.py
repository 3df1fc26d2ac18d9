"""Q3_K: a super-block of 16 x 16 weights of three bits, each 16 with a six-bit scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import TABLE

FORMAT = block_format("Q3_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
HMASK, QS, D = FORMAT.offsets("hmask", "qs", "d")
# A table serves the sub-blocks of 32 consecutive weights; bit 3 of a code says which of the two.
_VALUES = np.array([-4, -3, -2, -1, 0, 1, 2, 3] * 2, np.float32)
_SUB_BLOCK = np.repeat(np.array([0, 1], np.int32), 8)
_TABLE_PART = np.repeat(np.array([0, 8, 0, 8], np.int32) * 0x01010101, 4)
# Where scale s lies in the last 16 bytes of the block, of which the scales are bytes 2 to 13: its
# low four bits in byte 2 + s % 8, its high two in byte 10 + s % 4; and how far to shift them.
_LOW_AT = np.array([2 + s % 8 for s in range(16)], np.int32)
_LOW_SHIFT = np.array([4 * (s // 8) for s in range(16)], np.int32)
_HIGH_AT = np.array([10 + s % 4 for s in range(16)], np.int32)
_HIGH_SHIFT = np.array([2 * (s // 4) for s in range(16)], np.int32)
# The mask's bits 0-3 belong to the first 128 weights, bits 4-7 to the others.
_HMASK_SHIFT = np.repeat(np.array([0, 4], np.int32), 8)


@kernel(inline=True)
def decode_scales(block):
    """The 16 scales as i32x16, -32 to 31."""
    packed = simd.widen(simd.read_u8x16(block + BLOCK_BYTES - 16))
    low = simd.lookup16(packed, simd.load_i32x16(_LOW_AT, 0)) >> simd.load_i32x16(_LOW_SHIFT, 0)
    high = simd.lookup16(packed, simd.load_i32x16(_HIGH_AT, 0)) >> simd.load_i32x16(_HIGH_SHIFT, 0)
    return (low & 15 | (high & 3) << 4) - 32


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    values = simd.load_f32x16(_VALUES, 0)
    table_part = simd.load_i32x16(_TABLE_PART, 0)
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        dl = simd.to_f32(decode_scales(block)) * simd.splat_half(simd.read_u16(block + D))
        low = simd.as_i32x16(simd.read_u8x64(block + QS))
        hmask = simd.read_u8x32(block + HMASK)
        high = simd.as_i32x16(simd.join(hmask, hmask)) >> simd.load_i32x16(_HMASK_SHIFT, 0)
        for pair in range(4):
            q = (low >> (2 * pair)) & 0x03030303 | ((high << 2) >> pair) & 0x04040404
            codes = simd.as_u8x64(q | table_part)
            index = i * BLOCK_WEIGHTS + 32 * pair
            which = simd.load_i32x16(_SUB_BLOCK, 0) + 2 * pair
            table = simd.lookup16(dl, which) * values
            write(destination, index, table, simd.lower_half(codes))
            table = simd.lookup16(dl, which + 8) * values
            write(destination, index + 128, table, simd.upper_half(codes))


DECODER = make_decoder(decode_blocks, TABLE, BLOCK_WEIGHTS)
