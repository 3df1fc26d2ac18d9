"""Blocks of a scale and 32 weights of four bits, those of the low halves of 16 bytes first.

The weights are looked up in a table of 16, which the scale multiplies once a block.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .runs import make_decoder
from .writers import TABLE


def make_table_decoder(block):
    """The `Decoder` of a `BlockFormat` with the fields d and qs."""
    block_weights, block_bytes = block.block_weights, block.block_bytes
    d_at, qs_at = block.offsets("d", "qs")
    lowest, highest = block.codes
    values = np.array(block.values or range(lowest, highest + 1), np.float32)

    @kernel(inline=True)
    def decode_blocks(write, source, n_blocks, destination):
        """See runs.py."""
        for i in range(n_blocks):
            block = source + i * block_bytes
            d = simd.splat_half(simd.read_u16(block + d_at))
            q = simd.read_u8x16(block + qs_at)
            table = simd.load_f32x16(values, 0) * d
            write(destination, i * block_weights, table, simd.join(q & 15, q >> 4))

    return make_decoder(decode_blocks, TABLE, block_weights)
