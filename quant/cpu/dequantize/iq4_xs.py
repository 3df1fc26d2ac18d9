"""IQ4_XS: a super-block of 8 x 32 weights of four bits, looked up in a table, each 32 with a six-bit scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import TABLE

FORMAT = block_format("IQ4_XS")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, SCALES_H, SCALES_L, QS = FORMAT.offsets("d", "scales_h", "scales_l", "qs")
_VALUES = np.array(FORMAT.values, np.float32)
# Where scale s lies in the first 16 bytes of the block, and how far to shift them: its low four bits in byte
# SCALES_L + s / 2, its high two in byte SCALES_H + s / 4.
_LOW_AT = np.array([SCALES_L + s // 2 for s in range(8)] * 2, np.int32)
_LOW_SHIFT = np.array([4 * (s % 2) for s in range(8)] * 2, np.int32)
_HIGH_AT = np.array([SCALES_H + s // 4 for s in range(8)] * 2, np.int32)
_HIGH_SHIFT = np.array([2 * (s % 4) for s in range(8)] * 2, np.int32)


@kernel(inline=True)
def decode_scales(block):
    """The 8 scales, -32 to 31, in the first lanes of an i32x16."""
    packed = simd.widen(simd.read_u8x16(block))
    low = simd.lookup16(packed, simd.load_i32x16(_LOW_AT, 0)) >> simd.load_i32x16(_LOW_SHIFT, 0)
    high = simd.lookup16(packed, simd.load_i32x16(_HIGH_AT, 0)) >> simd.load_i32x16(_HIGH_SHIFT, 0)
    return (low & 15 | (high & 3) << 4) - 32


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    values = simd.load_f32x16(_VALUES, 0)
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.splat_half(simd.read_u16(block + D))
        scales = simd.spill(simd.to_f32(decode_scales(block)) * d)
        for sub_block in range(8):
            q = simd.read_u8x16(block + QS + 16 * sub_block)
            table = values * simd.splat(simd.read_f32(scales, sub_block))
            index = i * BLOCK_WEIGHTS + 32 * sub_block
            write(destination, index, table, simd.join(q & 15, q >> 4))


DECODER = make_decoder(decode_blocks, TABLE, BLOCK_WEIGHTS)
