"""IQ1_M: a super-block of 16 x 16 weights of -1, 0, 1 and a shift, each 16 with a scale, each eight an entry of 2048."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_weights import entries, sixteen_shifted
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("IQ1_M")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
QS, QH, SCALES = FORMAT.offsets("qs", "qh", "scales")
_GRID = entries(FORMAT.grid)
_SHIFT = np.float32(0.125)


@kernel(inline=True)
def super_scale(scales):
    """The super-block's scale: its four nibbles are the top ones of the four 16 bits with scales, an int64."""
    bits = (
        (scales >> 12 & 0xF)
        | (scales >> 24 & 0xF0)
        | (scales >> 36 & 0xF00)
        | (scales >> 48 & 0xF000)
    )
    return np.uint16(bits)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. qh, of an entry four bits: the high three of its number, the shift's sign. 16 bits have four
    scales of three bits."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        scales = simd.read_i64(block + SCALES)
        d = simd.half_to_f32(super_scale(scales))
        for run in range(16):
            numbers = np.int64(simd.read_u16(block + QS + 2 * run))
            tops = np.int64(simd.read_u8(block + QH + run))
            low, high = (
                _GRID[numbers & 255 | (tops & 7) << 8],
                _GRID[numbers >> 8 | (tops >> 4 & 7) << 8],
            )
            scale = d * np.float32(2 * (scales >> 16 * (run // 4) + 3 * (run % 4) & 7) + 1)
            low_shift = -_SHIFT if tops & 8 else _SHIFT
            high_shift = -_SHIFT if tops & 128 else _SHIFT
            weights = sixteen_shifted(low, high, low_shift, high_shift, scale)
            write(destination, i * BLOCK_WEIGHTS + 16 * run, weights)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
