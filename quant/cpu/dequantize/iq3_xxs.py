"""IQ3_XXS: a super-block of 8 x 32 weights, each 32 with a scale, each four an entry of 256, each eight with signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import SIGNS, entries, fine_scale, read_u32, sixteen
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ3_XXS")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS, REST = FORMAT.offsets("d", "qs", "scales_and_signs")
_GRID = entries(FORMAT.grid)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of 32 weights: eight bytes of entries; four times seven bits of signs and four of scale."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for run in range(16):
            numbers = read_u32(block + QS + 4 * run)
            rest = read_u32(block + REST + 4 * (run // 2))
            scale = fine_scale(d, rest >> 28) * np.float32(0.5)
            low = _GRID[numbers & 255] | _GRID[numbers >> 8 & 255] << 32
            high = _GRID[numbers >> 16 & 255] | _GRID[numbers >> 24] << 32
            bits = rest >> 14 * (run % 2)
            signs = SIGNS[bits & 127] | SIGNS[bits >> 7 & 127] << 8
            write(destination, i * BLOCK_WEIGHTS + 16 * run, sixteen(low, high, signs, scale))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
