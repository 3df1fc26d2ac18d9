"""TQ1_0: a super-block of 256 weights of -1, 0, 1, five in a byte, and a scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("TQ1_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
QS, QH, D = FORMAT.offsets("qs", "qh", "d")
# The last 16 weights: four in each of the bytes of qh, which are lanes 10 to 13 of the 16 bytes that end with the
# block.
_LAST_AT = np.array([QH - (BLOCK_BYTES - 16) + i % 4 for i in range(16)], np.int32)
_LAST_POWERS = np.array([3 ** (i // 4) for i in range(16)], np.int32)


@kernel(inline=True)
def _weights(digits, d):
    return simd.to_f32((digits >> 8) - 1) * d


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Bytes are fractions of 256 in base 3: the first digit of 32 bytes, their second, ...; of 16; of 4.

    Weights are written in their order: past the caches, another would take five times as long.
    """
    for i in range(n_blocks):
        block, index = source + i * BLOCK_BYTES, i * BLOCK_WEIGHTS
        d = simd.splat_half(simd.read_u16(block + D))
        first = simd.widen(simd.read_u8x16(block + QS))
        second = simd.widen(simd.read_u8x16(block + QS + 16))
        for digit in range(5):
            first, second = (first & 255) * 3, (second & 255) * 3
            write(destination, index + 32 * digit, _weights(first, d))
            write(destination, index + 32 * digit + 16, _weights(second, d))
        q = simd.widen(simd.read_u8x16(block + QS + 32))
        for digit in range(5):
            q = (q & 255) * 3
            write(destination, index + 160 + 16 * digit, _weights(q, d))
        q = simd.widen(simd.read_u8x16(block + BLOCK_BYTES - 16))
        q = simd.lookup16(q, simd.load_i32x16(_LAST_AT, 0)) * simd.load_i32x16(_LAST_POWERS, 0)
        write(destination, index + 240, _weights((q & 255) * 3, d))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
