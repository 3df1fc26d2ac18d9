"""float32 -> Q8_0: d (half) and 32 int8."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, write_half

FORMAT = block_format("Q8_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
# The largest float32 below 0.5: added before cutting, it rounds halves away from zero, and does
# not lift what is just below a half, as 0.5 itself would.
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _round_away(v):
    half = simd.splat(_ALMOST_HALF)
    return simd.to_i32(v + simd.select(v < _ZERO, simd.negate(half), half))


@kernel
def quantize_q8_0(address, n_blocks, out):
    """Quantise ``n_blocks * 32`` float32 behind `address` into `out` (uint8, 34 a block)."""
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        low = simd.read_f32x16(address, block * BLOCK_WEIGHTS)
        high = simd.read_f32x16(address, block * BLOCK_WEIGHTS + LANES)
        largest = simd.max_lanes(simd.maximum(simd.absolute(low), simd.absolute(high)))
        d = largest / np.float32(127.0)
        inverse = np.float32(1.0) / d
        if np.isinf(inverse):  # d is zero, or so small that it is zero as a half
            inverse = _ZERO
        write_half(out, o + _D, d)
        simd.store(out, o + _LEVELS, simd.narrow(_round_away(low * inverse)))
        simd.store(out, o + _LEVELS + LANES, simd.narrow(_round_away(high * inverse)))
