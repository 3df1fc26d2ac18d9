"""IQ2_XXS: a super-block of 8 x 32 weights, each 32 with a scale, each eight an entry of 256 and their signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import SIGNS, entries, fine_scale, read_u32, sixteen
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ2_XXS")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS = FORMAT.offsets("d", "qs")
_GRID = entries(FORMAT.grid)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of 32 weights: four bytes of entries, then four times seven bits of signs and four of scale."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for sub_block in range(8):
            at = block + QS + 8 * sub_block
            numbers, rest = read_u32(at), read_u32(at + 4)
            scale = fine_scale(d, rest >> 28) * np.float32(0.25)
            for half in range(2):
                low = _GRID[numbers >> 16 * half & 255]
                high = _GRID[numbers >> 16 * half + 8 & 255]
                signs = SIGNS[rest >> 14 * half & 127] | SIGNS[rest >> 14 * half + 7 & 127] << 8
                index = i * BLOCK_WEIGHTS + 32 * sub_block + 16 * half
                write(destination, index, sixteen(low, high, signs, scale))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
