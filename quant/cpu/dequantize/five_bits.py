"""Blocks of a scale, perhaps a minimum, and 32 weights of five bits: the low four as in table4.py, the fifth
bits of all side by side in 32 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .runs import make_decoder
from .writers import VALUES

if TYPE_CHECKING:
    from ...formats import BlockFormat
    from .runs import Decoder


# Which of the 32 bits belongs to each of 16 weights; those of the upper half are 16 further on.
_BIT = np.arange(16, dtype=np.int32)


@kernel(inline=True)
def _with_fifth_bit(low, bits):
    """Codes (i32x16) of 16 weights: `low` their low four bits (u8x16), `bits` their fifth as i32 lanes show it."""
    return simd.widen(low) | ((bits >> simd.load_i32x16(_BIT, 0)) & 1) << 4


def make_five_bit_decoder(block: BlockFormat) -> Decoder:
    """The `Decoder` of a `BlockFormat` with the fields d, qh, qs and, if it has minima, m."""
    block_weights, block_bytes = block.block_weights, block.block_bytes
    d_at, qh_at, qs_at = block.offsets("d", "qh", "qs")
    lowest = block.codes[0]
    if block.has_minima:
        (m_at,) = block.offsets("m")

        @kernel(inline=True)
        def weights(codes, block):
            # d * q has at most 16 significant bits: the product is exact
            d = simd.splat_half(simd.read_u16(block + d_at))
            m = simd.splat_half(simd.read_u16(block + m_at))
            return simd.multiply_add(simd.to_f32(codes), d, m)

    else:

        @kernel(inline=True)
        def weights(codes, block):
            return simd.to_f32(codes + lowest) * simd.splat_half(simd.read_u16(block + d_at))

    @kernel(inline=True)
    def decode_blocks(write, source, n_blocks, destination):
        """See runs.py."""
        for i in range(n_blocks):
            block = source + i * block_bytes
            q = simd.read_u8x16(block + qs_at)
            bits = simd.splat(simd.read_i32(block + qh_at))
            index = i * block_weights
            write(destination, index, weights(_with_fifth_bit(q & 15, bits), block))
            write(destination, index + 16, weights(_with_fifth_bit(q >> 4, bits >> 16), block))

    return make_decoder(decode_blocks, VALUES, block_weights)
