"""float32 -> Q2_K: 16 scales and minima of 4 bits, 64 bytes of 2-bit levels, d and dmin (half)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, clamped_int, nearest_int, read_lanes, write_crumbs, write_half
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


@kernel(allocates=True)
def quantize_q2_k(address, n_blocks, out):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 84 a block)."""
    x = np.empty(BLOCK_WEIGHTS, np.float32)
    weights = np.empty(BLOCK_WEIGHTS, np.float32)
    work = np.empty(BLOCK_WEIGHTS, np.float32)
    levels = np.empty(BLOCK_WEIGHTS, np.int32)
    packed_scales = np.empty(LANES, np.int32)
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        read_lanes(x, address, block * BLOCK_WEIGHTS, 16, LANES)
        for i in range(16):
            k = LANES * i
            simd.store(weights, k, simd.absolute(simd.load_f32x16(x, k)))
        scale, low, inverse, base = search_scale_and_minimum(
            x, weights, work, 16, 3, -0.5, 15, True
        )

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
