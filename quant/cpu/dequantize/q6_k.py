"""Q6_K: a super-block of 16 x 16 weights of six bits, each 16 with a signed byte as scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("Q6_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
QL, QH, SCALES, D = FORMAT.offsets("ql", "qh", "scales", "d")
# Per half of 128 weights: 64 bytes with the low four bits of two times 64 consecutive weights, and
# 32 bytes with the high two bits of four times 32.
_HIGH_SHIFT = np.repeat(np.array([0, 2], np.int32), 8)


@kernel(inline=True)
def _write_64(write, destination, index, q, scales):
    """64 weights: their six bits in a byte each, their four scales at address `scales`."""
    q = simd.spill(simd.as_u8x64(q) - 32)
    for part in range(4):
        values = simd.to_f32(simd.widen_signed(simd.read_u8x16(q + 16 * part)))
        scale = simd.splat(simd.read_f32(scales, part))
        write(destination, index + 16 * part, values * scale)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.splat_half(simd.read_u16(block + D))
        scales = simd.to_f32(simd.widen_signed(simd.read_u8x16(block + SCALES))) * d
        scales = simd.spill(scales)
        for half in range(2):
            low = simd.as_i32x16(simd.read_u8x64(block + QL + 64 * half))
            high = simd.read_u8x32(block + QH + 32 * half)
            high = simd.as_i32x16(simd.join(high, high)) >> simd.load_i32x16(_HIGH_SHIFT, 0)
            index = i * BLOCK_WEIGHTS + 128 * half
            q = low & 0x0F0F0F0F | (high << 4) & 0x30303030
            _write_64(write, destination, index, q, scales + 32 * half)
            q = (low >> 4) & 0x0F0F0F0F | high & 0x30303030
            _write_64(write, destination, index + 64, q, scales + 32 * half + 16)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
