"""float32 -> Q3_K: 32 bytes of high bits, 64 of 2-bit levels, 12 of 6-bit scales, d (half)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import lane_sums, mean_square, read_importance, weigh
from .lanes import LANES, clamped, clamped_int, largest_lane, read_lanes, write_crumbs, write_half
from .scalar import multiple_of_either_sign
from .search import search_levels, search_scale

FORMAT = block_format("Q3_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_HMASK, _LEVELS, _SCALES, _D = FORMAT.offsets("hmask", "qs", "scales", "d")
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _write_scales(out, offset, scales):
    """Pack 16 scales of 6 bits: low nibbles in 8 bytes, high pairs of bits in 4."""
    for i in range(8):
        out[offset + i] = (scales[i] & 15) | (scales[i + 8] & 15) << 4
    for i in range(4):
        byte = 0
        for group in range(4):
            byte |= scales[4 * group + i] >> 4 << 2 * group
        out[offset + 8 + i] = byte


@kernel(inline=True)
def _write_high_bits(out, offset, levels):
    """Bit k of byte i: whether weight i of the k-th group of 32 has a level above 3."""
    for i in range(32):
        byte = 0
        for group in range(8):
            k = LANES * (i & 15) + 2 * group + (i >> 4)
            byte |= levels[k] >> 2 << group
            levels[k] &= 3
        out[offset + i] = byte


@kernel(allocates=True)
def quantize_q3_k(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 110 a block)."""
    weights = np.empty(BLOCK_WEIGHTS, np.float32)
    sums, variances = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    scales = np.empty(LANES, np.float32)
    x = np.empty(BLOCK_WEIGHTS, np.float32)
    found = np.empty(BLOCK_WEIGHTS, np.float32)
    levels = np.empty(BLOCK_WEIGHTS, np.int32)
    packed_scales = np.empty(LANES, np.int32)
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        read_lanes(x, address, block * BLOCK_WEIGHTS, 16, LANES)
        if importance != 0:
            read_importance(weights, importance, block, 1, row_blocks, 16, LANES)
            variances[:] = 2 * mean_square(address, block * BLOCK_WEIGHTS, BLOCK_WEIGHTS)
            weigh(x, weights, variances, 16)
            lane_sums(weights, 16, sums)
            scale, inverse_found = search_scale(x, weights, 16, 4)
            is_empty = inverse_found == _ZERO  # all weights as good as zero: the lowest level
            for i in range(16):
                level = clamped(inverse_found * simd.load_f32x16(x, LANES * i), -4, 3)
                level = simd.select(is_empty, simd.splat(np.float32(-4.0)), level)
                simd.store(found, LANES * i, level)
        else:
            scale = search_levels(x, found, 16, 4)

        peak = largest_lane(scale)
        if importance != 0:
            simd.store(scales, 0, scale)
            d = multiple_of_either_sign(scales, sums, LANES, 32, packed_scales)
            d = write_half(out, o + _D, d)
            multiple = simd.load_i32x16(packed_scales, 0)
            simd.store(packed_scales, 0, multiple + 32)
            _write_scales(out, o + _SCALES, packed_scales)
            step = simd.splat(d) * simd.to_f32(multiple)
        elif peak == _ZERO:
            d = write_half(out, o + _D, _ZERO)
            step = simd.splat(_ZERO)
            for i in range(12):
                out[o + _SCALES + i] = 0
        else:
            inverse = np.float32(-32.0) / peak
            d = write_half(out, o + _D, np.float32(1.0) / inverse)
            multiple = clamped_int(simd.splat(inverse) * scale, -32, 31)
            simd.store(packed_scales, 0, multiple + 32)
            _write_scales(out, o + _SCALES, packed_scales)
            step = simd.splat(d) * simd.to_f32(multiple)

        is_zero = step == _ZERO
        for i in range(16):
            v = simd.load_f32x16(x, LANES * i)
            # A sub-block whose scale came out 0 keeps the levels of the search.
            level = simd.select(is_zero, simd.load_f32x16(found, LANES * i), v / step)
            simd.store(levels, LANES * i, clamped_int(level, -4, 3) + 4)
        _write_high_bits(out, o + _HMASK, levels)
        write_crumbs(out, o + _LEVELS, levels)
