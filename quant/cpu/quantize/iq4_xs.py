"""float32 -> IQ4_XS: d (half), 8 scales of 6 bits, 128 bytes of nibbles that index IQ4_NL's table."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import mean_square, read_importance, squares, weigh
from .iq4_nl import nearest_value, search_scale
from .lanes import LANES, clamped_int, read_lanes, write_half

FORMAT = block_format("IQ4_XS")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _SCALES_H, _SCALES_L, _LEVELS = FORMAT.offsets("d", "scales_h", "scales_l", "qs")
_SUB_BLOCK = FORMAT.sub_block
_PER_BLOCK = BLOCK_WEIGHTS // _SUB_BLOCK
_LOWEST, _HIGHEST = FORMAT.scales
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _largest(values, first):
    """The value of largest size among ``values[first : first + 8]``, with its sign (the first such one)."""
    largest = _ZERO
    for lane in range(first, first + _PER_BLOCK):
        if abs(values[lane]) > abs(largest):
            largest = values[lane]
    return largest


@kernel(inline=True)
def _write_scales(out, offset, scales, first):
    """Pack 8 scales, 0 to 63: the low four bits two a byte, the high two four a byte."""
    for i in range(4):
        low, high = scales[first + 2 * i], scales[first + 2 * i + 1]
        out[offset + _SCALES_L + i] = (low & 15) | (high & 15) << 4
    for i in range(2):
        byte = 0
        for k in range(4):
            byte |= scales[first + 4 * i + k] >> 4 << 2 * k
        out[offset + _SCALES_H + i] = byte


@kernel(allocates=True)
def quantize_iq4_xs(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 136 a block).

    Two super-blocks at a time fill the 16 lanes; the lanes of a missing one hold zeros.
    """
    x, weights = np.empty(2 * BLOCK_WEIGHTS, np.float32), np.empty(2 * BLOCK_WEIGHTS, np.float32)
    variances = np.zeros(LANES, np.float32)
    levels = np.empty(2 * BLOCK_WEIGHTS, np.int32)
    scales, steps = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    scale_bits = np.zeros(LANES, np.int32)
    for block in range(0, n_blocks, 2):
        n_here = min(2, n_blocks - block)
        read_lanes(x, address, block * BLOCK_WEIGHTS, _SUB_BLOCK, _PER_BLOCK * n_here)
        if importance != 0:
            read_importance(weights, importance, block, n_here, row_blocks, _SUB_BLOCK, _PER_BLOCK)
            for part in range(n_here):
                variance = 2 * mean_square(address, (block + part) * BLOCK_WEIGHTS, BLOCK_WEIGHTS)
                variances[_PER_BLOCK * part : _PER_BLOCK * (part + 1)] = variance
            weigh(x, weights, variances, _SUB_BLOCK)
        else:
            squares(x, weights, _SUB_BLOCK)
        simd.store(scales, 0, search_scale(x, weights))
        for part in range(n_here):
            o, first = (block + part) * BLOCK_BYTES, _PER_BLOCK * part
            # The scale of largest size becomes the lowest multiple, of which there is one more.
            d = -_largest(scales, first) / np.float32(-_LOWEST)
            write_half(out, o + _D, d)
            inverse = np.float32(1.0) / d if d != _ZERO else _ZERO
            # All 16 lanes; the other super-block's come with its own factor.
            multiples = simd.splat(inverse) * simd.load_f32x16(scales, 0)
            multiples = clamped_int(multiples, _LOWEST, _HIGHEST)
            for lane in range(first, first + _PER_BLOCK):
                multiple = simd.extract(multiples, lane)
                scale_bits[lane] = multiple - _LOWEST
                steps[lane] = d * np.float32(multiple)
            _write_scales(out, o, scale_bits, first)

        step = simd.load_f32x16(steps, 0)
        inverses = simd.select(step == _ZERO, simd.splat(_ZERO), simd.splat(np.float32(1.0)) / step)
        for i in range(_SUB_BLOCK):
            v = simd.load_f32x16(x, LANES * i)
            simd.store(levels, LANES * i, nearest_value(inverses * v))
        for part in range(n_here):
            o = (block + part) * BLOCK_BYTES + _LEVELS
            for sub_block in range(_PER_BLOCK):
                for i in range(16):
                    k = LANES * i + _PER_BLOCK * part + sub_block
                    out[o + 16 * sub_block + i] = levels[k] | levels[k + 16 * LANES] << 4
