"""float32 -> Q4_0: d (half) and 16 bytes of nibbles, level 8 meaning zero."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, largest_lane, write_half

FORMAT = block_format("Q4_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
_ZERO = np.float32(0.0)


@kernel
def quantize_q4_0(address, n_blocks, out):
    """Quantise ``n_blocks * 32`` float32 behind `address` into `out` (uint8, 18 a block)."""
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        low = simd.read_f32x16(address, block * BLOCK_WEIGHTS)
        high = simd.read_f32x16(address, block * BLOCK_WEIGHTS + LANES)
        peak = largest_lane(low)
        high_peak = largest_lane(high)
        if abs(high_peak) > abs(peak):
            peak = high_peak
        d = peak / np.float32(-8.0)
        write_half(out, o + _D, d)
        inverse, zero_level = np.float32(1.0) / d, np.float32(8.5)
        if d == _ZERO:
            inverse = _ZERO
        elif np.isinf(inverse):  # d is zero as a half; ggml leaves all levels 0
            inverse, zero_level = _ZERO, _ZERO
        top = simd.splat(15)
        low_level = simd.minimum(simd.to_i32(low * inverse + zero_level), top)
        high_level = simd.minimum(simd.to_i32(high * inverse + zero_level), top)
        simd.store(out, o + _LEVELS, simd.narrow(low_level | high_level << 4))
