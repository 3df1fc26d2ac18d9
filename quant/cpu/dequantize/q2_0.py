"""Q2_0: 64 weights of two bits, less one, and a scale."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("Q2_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS = FORMAT.offsets("d", "qs")
_AT = np.arange(0, 32, 2, dtype=np.int32)


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Four weights a byte, the lowest bits first."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.splat_half(simd.read_u16(block + D))
        for run in range(4):
            bits = simd.splat(simd.read_i32(block + QS + 4 * run))
            codes = (bits >> simd.load_i32x16(_AT, 0)) & 3
            write(destination, i * BLOCK_WEIGHTS + 16 * run, simd.to_f32(codes - 1) * d)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
