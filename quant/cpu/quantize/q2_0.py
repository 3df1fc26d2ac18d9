"""float32 -> Q2_0: d (half), 16 bytes of two bits."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import write_half
from .scalar import inverse_of, peak_of, round_away

FORMAT = block_format("Q2_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _QS = FORMAT.offsets("d", "qs")


@kernel
def quantize_q2_0(address, n_blocks, out):
    """Quantise ``n_blocks * 64`` float32 behind `address` into `out` (uint8, 18 a block)."""
    for block in range(n_blocks):
        first, o = block * BLOCK_WEIGHTS, block * BLOCK_BYTES
        d = peak_of(address, first, BLOCK_WEIGHTS)
        inverse = inverse_of(d)
        # Next to a scale so small that it has no inverse ggml's levels are the lowest: as a half it is zero.
        has_levels = inverse != np.float32(0.0) or d == np.float32(0.0)
        write_half(out, o + _D, d)
        for i in range(16):
            byte = 0
            for part in range(4):
                weight = simd.read_f32(address, first + 4 * i + part)
                if has_levels:
                    byte |= (round_away(weight * inverse) + 1) << 2 * part
            out[o + _QS + i] = byte
