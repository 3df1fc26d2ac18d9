"""IQ3_S: a super-block of 8 x 32 weights, each 32 with a scale, each four an entry of 512, each eight with eight signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import entries, read_u32, sixteen
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ3_S")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS, QH, SIGN_BITS, SCALES = FORMAT.offsets("d", "qs", "qh", "signs", "scales")
_GRID = entries(FORMAT.grid)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of an entry's number eight bits stand in qs, the ninth in qh, eight entries a byte."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for run in range(16):
            numbers = read_u32(block + QS + 4 * run)
            tops = np.int64(simd.read_u8(block + QH + run // 2)) >> 4 * (run % 2)
            low = _GRID[numbers & 255 | (tops & 1) << 8]
            low |= _GRID[numbers >> 8 & 255 | (tops >> 1 & 1) << 8] << 32
            high = _GRID[numbers >> 16 & 255 | (tops >> 2 & 1) << 8]
            high |= _GRID[numbers >> 24 | (tops >> 3 & 1) << 8] << 32
            s = simd.read_u8(block + SCALES + run // 4) >> 4 * (run // 2 % 2) & 15
            signs = np.int64(simd.read_u16(block + SIGN_BITS + 2 * run))
            weights = sixteen(low, high, signs, d * np.float32(1 + 2 * s))
            write(destination, i * BLOCK_WEIGHTS + 16 * run, weights)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
