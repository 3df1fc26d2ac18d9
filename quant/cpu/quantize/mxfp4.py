"""float32 -> MXFP4: e (a power of two) and 16 bytes of nibbles that index a table of 16 levels."""

import math

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from ..exponents import half_power_of_two
from .lanes import LANES

FORMAT = block_format("MXFP4")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_E, _LEVELS = FORMAT.offsets("e", "qs")
_VALUES = np.array(FORMAT.values, np.float32)
_ZERO = np.float32(0.0)
# The largest E2M1 value is 1.5 * 2**2; exponents are stored with a bias of 127.
_BIAS = 127 - 2


@kernel(inline=True)
def _exponent(largest):
    """e for a block whose largest weight has that size: the logarithm is rounded to float32, as ggml's is.

    Below 2**-125 it wraps around, as ggml's does: next to so large a scale all weights are zeros.
    """
    if largest == _ZERO:
        return 0
    return (math.floor(np.float32(math.log2(np.float64(largest)))) + _BIAS) & 255


@kernel(inline=True)
def nearest_level(v, scale):
    """Index (i32x16) of the level next to each weight; of two as near the first."""
    index = simd.splat(0)
    error = simd.absolute(scale * _VALUES[0] - v)
    for i in range(1, 16):
        other = simd.absolute(scale * _VALUES[i] - v)
        better = other < error
        error = simd.select(better, other, error)
        index = simd.select(better, simd.splat(i), index)
    return index


@kernel
def quantize_mxfp4(address, n_blocks, out):
    """Quantise ``n_blocks * 32`` float32 behind `address` into `out` (uint8, 17 a block)."""
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        low = simd.read_f32x16(address, block * BLOCK_WEIGHTS)
        high = simd.read_f32x16(address, block * BLOCK_WEIGHTS + LANES)
        largest = simd.max_lanes(simd.maximum(simd.absolute(low), simd.absolute(high)))
        e = _exponent(largest)
        out[o + _E] = e
        scale = half_power_of_two(simd.splat(e))
        levels = nearest_level(low, scale) | nearest_level(high, scale) << 4
        simd.store(out, o + _LEVELS, simd.narrow(levels))
