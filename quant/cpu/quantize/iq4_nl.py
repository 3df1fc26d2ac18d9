"""float32 -> IQ4_NL: d (half) and 16 bytes of nibbles that index a table of 16 uneven levels."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import lane_sums, read_importance, squares, weigh
from .lanes import LANES, SMALLEST_PEAK, peaks, read_lanes, write_half

FORMAT = block_format("IQ4_NL")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
VALUES = np.array(FORMAT.values, np.float32)
# Value k is nearest below MIDPOINTS[k], value k + 1 from there on.
MIDPOINTS = np.append((VALUES[:-1] + VALUES[1:]) / 2, np.inf).astype(np.float32)
# A polynomial with k + 0.39 < p(MIDPOINTS[k]) < k + 0.61: its whole part is the right index or
# one below.
_P3, _P2, _P1, _P0 = (
    np.float32(c) for c in (-1.39901087e-06, -4.60640432e-06, 8.12126375e-02, 7.88800789)
)
_TRIES = 7
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@kernel(inline=True)
def nearest_value(v):
    """Index (i32x16) of the entry of `VALUES` next to each lane; between two, the upper one."""
    v = simd.maximum(simd.minimum(v, simd.splat(VALUES[15])), simd.splat(VALUES[0]))
    guess = ((v * _P3 + _P2) * v + _P1) * v + _P0
    index = simd.to_i32(guess)
    midpoint = simd.lookup16(simd.load_f32x16(MIDPOINTS, 0), index)
    return simd.select(v >= midpoint, index + 1, index)


@kernel(inline=True)
def _weighted_fit(x, weights, inverse):
    """sum(w x q) and sum(w q q) for the table's values q that `inverse` gives."""
    values = simd.load_f32x16(VALUES, 0)
    sum_xq = simd.splat(_ZERO)
    sum_qq = simd.splat(_ZERO)
    for i in range(BLOCK_WEIGHTS):
        v = simd.load_f32x16(x, LANES * i)
        q = simd.lookup16(values, nearest_value(inverse * v))
        wq = simd.load_f32x16(weights, LANES * i) * q
        sum_xq += wq * v
        sum_qq += wq * q
    return sum_xq, sum_qq


@kernel(inline=True)
def search_scale(x, weights):
    """The scale that fits best among 16 candidates: ggml's search, on 16 blocks at once."""
    largest, peak = peaks(x, BLOCK_WEIGHTS)
    is_zero = largest < SMALLEST_PEAK
    peak = simd.select(is_zero, simd.splat(_ONE), peak)
    # First the largest weight as +127, a value the table lacks; then its neighbours below zero.
    inverse = simd.splat(_ONE) / (simd.negate(peak) / simd.splat(VALUES[0]))
    sum_xq, sum_qq = _weighted_fit(x, weights, inverse)
    scale = simd.select(sum_qq > _ZERO, sum_xq / sum_qq, simd.splat(_ZERO))
    best = scale * sum_xq
    for step in range(-_TRIES, _TRIES + 1):
        inverse = simd.splat(np.float32(step) + VALUES[0]) / peak
        sum_xq, sum_qq = _weighted_fit(x, weights, inverse)
        better = (sum_qq > _ZERO) & (sum_xq * sum_xq > best * sum_qq)
        scale = simd.select(better, sum_xq / sum_qq, scale)
        best = simd.select(better, scale * sum_xq, best)
    return simd.select(is_zero, simd.splat(_ZERO), scale)


@kernel(allocates=True)
def quantize_iq4_nl(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 32`` float32 behind `address` into `out` (uint8, 18 a block).

    Sixteen blocks at a time fill the lanes; the lanes of missing ones hold zeros.
    """
    x = np.empty(LANES * BLOCK_WEIGHTS, np.float32)
    weights, variances = np.empty_like(x), np.empty(LANES, np.float32)
    levels = np.empty(LANES * BLOCK_WEIGHTS, np.int32)
    scales = np.empty(LANES, np.float32)
    for block in range(0, n_blocks, LANES):
        n_here = min(LANES, n_blocks - block)
        read_lanes(x, address, block * BLOCK_WEIGHTS, BLOCK_WEIGHTS, n_here)
        squares(x, weights, BLOCK_WEIGHTS)
        if importance != 0:
            lane_sums(weights, BLOCK_WEIGHTS, variances)
            variances *= np.float32(2 / BLOCK_WEIGHTS)
            read_importance(weights, importance, block, n_here, row_blocks, BLOCK_WEIGHTS, 1)
            weigh(x, weights, variances, BLOCK_WEIGHTS)
        scale = search_scale(x, weights)
        simd.store(scales, 0, scale)
        zero = simd.splat(_ZERO)
        inverse = simd.select(scale == _ZERO, zero, simd.splat(_ONE) / scale)
        for i in range(BLOCK_WEIGHTS):
            v = simd.load_f32x16(x, LANES * i)
            simd.store(levels, LANES * i, nearest_value(inverse * v))
        for lane in range(n_here):
            o = (block + lane) * BLOCK_BYTES
            write_half(out, o + _D, scales[lane])
            for i in range(16):
                k = LANES * i + lane
                out[o + _LEVELS + i] = levels[k] | levels[k + 16 * LANES] << 4
