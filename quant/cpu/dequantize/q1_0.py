"""Q1_0: 128 weights of one bit, a scale or its negative."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import signed_by
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("Q1_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. The lowest bit of a byte comes first."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.splat_half(simd.read_u16(block + D))
        for run in range(8):
            minus = ~np.int64(simd.read_u16(block + QS + 2 * run))
            write(destination, i * BLOCK_WEIGHTS + 16 * run, signed_by(d, minus))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
