"""IQ1_S: a super-block of 8 x 32 weights of -1, 0, 1 and a shift, each 32 with a scale, each eight an entry of 2048."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import entries, sixteen_shifted
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ1_S")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS, QH = FORMAT.offsets("d", "qs", "qh")
_GRID = entries(FORMAT.grid)
_SHIFT = np.float32(0.125)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. qh, of 32 weights: the high three bits of four entries' numbers, three of scale, the shift's sign."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for run in range(16):
            numbers = np.int64(simd.read_u16(block + QS + 2 * run))
            rest = np.int64(simd.read_u16(block + QH + 2 * (run // 2)))
            tops = rest >> 6 * (run % 2)
            low, high = (
                _GRID[numbers & 255 | (tops & 7) << 8],
                _GRID[numbers >> 8 | (tops >> 3 & 7) << 8],
            )
            shift = -_SHIFT if rest >> 15 else _SHIFT
            scale = d * np.float32(2 * (rest >> 12 & 7) + 1)
            weights = sixteen_shifted(low, high, shift, shift, scale)
            write(destination, i * BLOCK_WEIGHTS + 16 * run, weights)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
