"""float32 -> Q1_0: d (half), the mean size of the weights, and 16 bytes of their signs."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import write_half

FORMAT = block_format("Q1_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _QS = FORMAT.offsets("d", "qs")


@kernel
def quantize_q1_0(address, n_blocks, out):
    """Quantise ``n_blocks * 128`` float32 behind `address` into `out` (uint8, 18 a block)."""
    for block in range(n_blocks):
        first, o = block * BLOCK_WEIGHTS, block * BLOCK_BYTES
        total = np.float32(0.0)
        for i in range(16):
            byte = 0
            for bit in range(8):
                weight = simd.read_f32(address, first + 8 * i + bit)
                total += abs(weight)
                if weight >= np.float32(0.0):
                    byte |= 1 << bit
            out[o + _QS + i] = byte
        write_half(out, o + _D, total / np.float32(BLOCK_WEIGHTS))
