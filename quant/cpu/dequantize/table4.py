"""Blocks of a scale, perhaps a minimum, and 32 weights of four bits, those of the low halves of 16 bytes first.

The weights are looked up in a table of 16, which the scale multiplies once a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ..exponents import half_power_of_two
from .runs import make_decoder
from .writers import TABLE

if TYPE_CHECKING:
    from ...formats import BlockFormat
    from .runs import Decoder


def make_table_decoder(block: BlockFormat) -> Decoder:
    """The `Decoder` of a `BlockFormat` with the fields d (or e, a power of two), qs and, if it has minima, m."""
    block_weights, block_bytes = block.block_weights, block.block_bytes
    scale_at, qs_at = block.fields[0].offset, block.field("qs").offset
    lowest, highest = block.codes
    values = np.array(block.values or range(lowest, highest + 1), np.float32)
    if block.has_minima:
        (m_at,) = block.offsets("m")

        @kernel(inline=True)
        def table_of(block):
            # d * q has at most 15 significant bits: the product is exact
            d = simd.splat_half(simd.read_u16(block + scale_at))
            m = simd.splat_half(simd.read_u16(block + m_at))
            return simd.multiply_add(simd.load_f32x16(values, 0), d, m)

    elif block.fields[0].name == "e":

        @kernel(inline=True)
        def table_of(block):
            scale = half_power_of_two(simd.splat(np.int64(simd.read_u8(block + scale_at))))
            return simd.load_f32x16(values, 0) * scale

    else:

        @kernel(inline=True)
        def table_of(block):
            return simd.load_f32x16(values, 0) * simd.splat_half(simd.read_u16(block + scale_at))

    @kernel(inline=True)
    def decode_blocks(write, source, n_blocks, destination):
        """See runs.py."""
        for i in range(n_blocks):
            block = source + i * block_bytes
            q = simd.read_u8x16(block + qs_at)
            write(destination, i * block_weights, table_of(block), simd.join(q & 15, q >> 4))

    return make_decoder(decode_blocks, TABLE, block_weights)
