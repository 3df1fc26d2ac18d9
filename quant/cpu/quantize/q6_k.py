"""float32 -> Q6_K: 128 bytes of low nibbles, 64 of high bits, 16 int8 scales, d (half)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import read_importance, squares
from .lanes import (
    LANES,
    SMALLEST_PEAK,
    clamped_int,
    largest_lane,
    nearest_int,
    read_lanes,
    write_half,
)
from .search import search_scale

FORMAT = block_format("Q6_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_LOW, _HIGH, _SCALES, _D = FORMAT.offsets("ql", "qh", "scales", "d")
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _write_levels(out, offset, levels):
    """Pack 256 levels of 6 bits: of each half's four groups of 32, nibbles of the groups 0 and 2,
    then 1 and 3, share a byte; the high pairs of bits of all four share another."""
    for half in range(2):
        low, high = offset + _LOW + 64 * half, offset + _HIGH + 32 * half
        for odd in range(2):
            for i in range(16):
                k = LANES * i + 8 * half + odd
                q0, q1, q2, q3 = levels[k], levels[k + 2], levels[k + 4], levels[k + 6]
                at = 16 * odd + i
                out[low + at] = (q0 & 15) | (q2 & 15) << 4
                out[low + 32 + at] = (q1 & 15) | (q3 & 15) << 4
                out[high + at] = q0 >> 4 | q1 >> 4 << 2 | q2 >> 4 << 4 | q3 >> 4 << 6


@kernel(allocates=True)
def quantize_q6_k(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 210 a block)."""
    x, weights = np.empty(BLOCK_WEIGHTS, np.float32), np.empty(BLOCK_WEIGHTS, np.float32)
    levels = np.empty(BLOCK_WEIGHTS, np.int32)
    packed_scales = np.empty(LANES, np.int32)
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        read_lanes(x, address, block * BLOCK_WEIGHTS, 16, LANES)
        if importance != 0:
            read_importance(weights, importance, block, 1, row_blocks, 16, LANES)
        else:
            squares(x, weights, 16)
        scale, search_inverse = search_scale(x, weights, 16, 32)

        peak = largest_lane(scale)
        if abs(peak) < SMALLEST_PEAK:
            for i in range(BLOCK_BYTES):
                out[o + i] = 0
            continue
        inverse = np.float32(-128.0) / peak
        d = write_half(out, o + _D, np.float32(1.0) / inverse)
        multiple = simd.minimum(nearest_int(simd.splat(inverse) * scale), simd.splat(127))
        simd.store(packed_scales, 0, multiple)
        for lane in range(LANES):
            out[o + _SCALES + lane] = packed_scales[lane]

        step = simd.splat(d) * simd.to_f32(multiple)
        is_zero = step == _ZERO
        # A sub-block whose scale came out 0 keeps the levels of the search; all weights as good
        # as zero, they were left at the lowest.
        is_empty = search_inverse == _ZERO
        for i in range(16):
            v = simd.load_f32x16(x, LANES * i)
            level = simd.select(is_zero, search_inverse * v, v / step)
            level = simd.select(is_zero & is_empty, simd.splat(np.float32(-32.0)), level)
            simd.store(levels, LANES * i, clamped_int(level, -32, 31) + 32)
        _write_levels(out, o, levels)
