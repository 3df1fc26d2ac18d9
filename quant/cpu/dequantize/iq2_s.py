"""IQ2_S: a super-block of 16 x 16 weights, each 16 with a scale, each eight an entry of 1024 and eight signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import entries, fine_scale, sixteen
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ2_S")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS, SIGN_BITS, QH, SCALES = FORMAT.offsets("d", "qs", "signs", "qh", "scales")
_GRID = entries(FORMAT.grid)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of an entry's number eight bits stand in qs, the high two in qh, four entries a byte."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.half_to_f32(simd.read_u16(block + D))
        for run in range(16):
            numbers = np.int64(simd.read_u16(block + QS + 2 * run))
            tops = np.int64(simd.read_u8(block + QH + run // 2)) >> 4 * (run % 2)
            low = _GRID[numbers & 255 | (tops & 3) << 8]
            high = _GRID[numbers >> 8 | (tops >> 2 & 3) << 8]
            s = simd.read_u8(block + SCALES + run // 2) >> 4 * (run % 2) & 15
            scale = fine_scale(d, s) * np.float32(0.25)
            signs = np.int64(simd.read_u16(block + SIGN_BITS + 2 * run))
            write(destination, i * BLOCK_WEIGHTS + 16 * run, sixteen(low, high, signs, scale))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
