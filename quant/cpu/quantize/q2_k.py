"""float32 -> Q2_K: 16 scales and minima of 4 bits, 64 bytes of 2-bit levels, d and dmin (half)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import FIRST, N_STEPS, STEP_SIZE, lane_sums, mean_square, read_importance, weigh
from .lanes import LANES, clamped_int, nearest_int, read_lanes, write_crumbs, write_half
from .scalar import multiple_of_peak
from .search import search_scale_and_minimum

FORMAT = block_format("Q2_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_SCALES, _LEVELS, _D, _DMIN = FORMAT.offsets("scales", "qs", "d", "dmin")
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _four_bits(values, out, offset):
    """16 non-negative values as 4-bit multiples of one half, which is stored at `offset`.

    Returns the half's value and the multiples (i32x16).
    """
    largest = simd.max_lanes(values)
    if not largest > _ZERO:
        return write_half(out, offset, _ZERO), simd.splat(0)
    multiples = nearest_int(simd.splat(np.float32(15.0) / largest) * values)
    return write_half(out, offset, largest / np.float32(15.0)), multiples


@kernel(inline=True)
def _fitted(values, weights, n_levels, found, multiples, out, offset):
    """As `_four_bits`, by the fit of `scalar.multiple_of_peak`."""
    simd.store(found, 0, values)
    half = multiple_of_peak(found, weights, 0, LANES, n_levels, multiples)
    return write_half(out, offset, half), simd.load_i32x16(multiples, 0)


@kernel(allocates=True)
def quantize_q2_k(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 84 a block)."""
    sums, variances = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found, multiples = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    x = np.empty(BLOCK_WEIGHTS, np.float32)
    weights = np.empty(BLOCK_WEIGHTS, np.float32)
    work = np.empty(BLOCK_WEIGHTS, np.float32)
    levels = np.empty(BLOCK_WEIGHTS, np.int32)
    packed_scales = np.empty(LANES, np.int32)
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        read_lanes(x, address, block * BLOCK_WEIGHTS, 16, LANES)
        if importance != 0:
            read_importance(weights, importance, block, 1, row_blocks, 16, LANES)
            variances[:] = mean_square(address, block * BLOCK_WEIGHTS, BLOCK_WEIGHTS)
            weigh(x, weights, variances, 16)
            lane_sums(weights, 16, sums)
        else:
            for i in range(16):
                k = LANES * i
                simd.store(weights, k, simd.absolute(simd.load_f32x16(x, k)))
        first, step_size, n_steps = (
            (FIRST, STEP_SIZE, N_STEPS) if importance != 0 else (-0.5, 0.1, 15)
        )
        scale, low, inverse, base = search_scale_and_minimum(
            x, weights, work, 16, 3, first, step_size, n_steps, importance == 0
        )

        if importance != 0:
            d, scale_bits = _fitted(scale, sums, 15, found, multiples, out, o + _D)
            dmin, minimum_bits = _fitted(
                simd.negate(low), sums, 15, found, multiples, out, o + _DMIN
            )
        else:
            d, scale_bits = _four_bits(scale, out, o + _D)
            dmin, minimum_bits = _four_bits(simd.negate(low), out, o + _DMIN)
        # As bytes: a scale below zero, which can happen, wraps around.
        scale_byte = ((scale_bits & 255) | minimum_bits << 4) & 255
        simd.store(packed_scales, 0, scale_byte)
        for lane in range(LANES):
            out[o + _SCALES + lane] = packed_scales[lane]

        step = simd.splat(d) * simd.to_f32(scale_byte & 15)
        shift = simd.splat(dmin) * simd.to_f32(scale_byte >> 4)
        is_zero = step == _ZERO
        for i in range(16):
            v = simd.load_f32x16(x, LANES * i)
            # A sub-block whose scale came out 0 keeps the levels of the search.
            level = simd.select(is_zero, inverse * (v - base), (v + shift) / step)
            simd.store(levels, LANES * i, clamped_int(level, 0, 3))
        write_crumbs(out, o + _LEVELS, levels)
