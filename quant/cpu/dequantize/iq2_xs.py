"""IQ2_XS: a super-block of 16 x 16 weights, each 16 with a scale, each eight an entry of 512 and their signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import SIGNS, entries, fine_scale, sixteen
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ2_XS")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS, SCALES = FORMAT.offsets("d", "qs", "scales")
_GRID = entries(FORMAT.grid)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of eight weights: nine bits of entry, seven of signs."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for run in range(16):
            first = np.int64(simd.read_u16(block + QS + 4 * run))
            second = np.int64(simd.read_u16(block + QS + 4 * run + 2))
            s = simd.read_u8(block + SCALES + run // 2) >> 4 * (run % 2) & 15
            scale = fine_scale(d, s) * np.float32(0.25)
            signs = SIGNS[first >> 9] | SIGNS[second >> 9] << 8
            weights = sixteen(_GRID[first & 511], _GRID[second & 511], signs, scale)
            write(destination, i * BLOCK_WEIGHTS + 16 * run, weights)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
