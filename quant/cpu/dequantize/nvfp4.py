"""NVFP4: 4 x 16 weights of four bits (E2M1), each 16 with a scale of eight (UE4M3)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from ..exponents import SMALL_FLOATS
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("NVFP4")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS = FORMAT.offsets("d", "qs")
_VALUES = np.array(FORMAT.values, np.float32)
_NIBBLES = 0x0F0F0F0F0F0F0F0F


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Of 16 weights the first eight are low nibbles of eight bytes, the others high ones."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        for run in range(4):
            scale = simd.splat(SMALL_FLOATS[simd.read_u8(block + D + run)])
            q = simd.read_i64(block + QS + 8 * run)
            codes = simd.widen(simd.bytes_of(q & _NIBBLES, q >> 4 & _NIBBLES))
            weights = simd.lookup16(simd.load_f32x16(_VALUES, 0), codes) * scale
            write(destination, i * BLOCK_WEIGHTS + 16 * run, weights)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
