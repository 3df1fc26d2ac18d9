"""TQ2_0: a super-block of 256 weights of two bits, less one, and a scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import TABLE

FORMAT = block_format("TQ2_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
QS, D = FORMAT.offsets("qs", "d")
_VALUES = np.array([-1, 0, 1, 2] * 4, np.float32)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Two bits at one place in 32 bytes belong to 32 consecutive weights; there are two times 32 bytes."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        table = simd.load_f32x16(_VALUES, 0) * simd.splat_half(simd.read_u16(block + D))
        for half in range(2):
            q = simd.read_u8x32(block + QS + 32 * half)
            for part in range(4):
                index = i * BLOCK_WEIGHTS + 128 * half + 32 * part
                write(destination, index, table, (q >> (2 * part)) & 3)


DECODER = make_decoder(decode_blocks, TABLE, BLOCK_WEIGHTS)
