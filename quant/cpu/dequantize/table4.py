"""Q4_0 and IQ4_NL: a scale and 32 weights of four bits, those of the low halves of 16 bytes first.

Both look their weights up in a table of 16, which the scale multiplies once a block.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .runs import make_decoder
from .writers import TABLE

BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18
D, QS = 0, 2  # byte offsets in a block
Q4_0_VALUES = np.arange(-8, 8, dtype=np.float32)
IQ4_NL_VALUES = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32
)


def _make_decode_blocks(values):
    @kernel(inline=True)
    def decode_blocks(write, source, n_blocks, destination):
        """See runs.py."""
        for i in range(n_blocks):
            block = source + i * BLOCK_BYTES
            d = simd.splat_half(simd.read_u16(block + D))
            q = simd.read_u8x16(block + QS)
            table = simd.load_f32x16(values, 0) * d
            write(destination, i * BLOCK_WEIGHTS, table, simd.join(q & 15, q >> 4))

    return decode_blocks


Q4_0, IQ4_NL = (
    make_decoder(_make_decode_blocks(values), TABLE, BLOCK_WEIGHTS)
    for values in (Q4_0_VALUES, IQ4_NL_VALUES)
)
