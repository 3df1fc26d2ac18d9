"""float32 -> Q5_K: d and dmin (half), 8 scales and minima of 6 bits, 32 bytes of fifth bits, 128 of nibbles."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import FIRST, N_STEPS, STEP_SIZE
from .lanes import LANES, clamped_int, read_lanes
from .q4_k import (
    error_weights,
    fitted_six_bits,
    six_bits,
    weigh_by_importance,
    write_nibbles,
    write_scales,
)
from .search import search_scale_and_minimum

FORMAT = block_format("Q5_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_SUB_BLOCK = FORMAT.sub_block
_PER_BLOCK = BLOCK_WEIGHTS // _SUB_BLOCK
_HIGHEST = FORMAT.codes[1]
_D, _DMIN, _SCALES, _HIGH, _LEVELS = FORMAT.offsets("d", "dmin", "scales", "qh", "qs")
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _write_fifth_bits(out, offset, levels, first):
    """Bit s of byte i: the fifth bit of weight i of sub-block s. Levels keep the other four."""
    for i in range(_SUB_BLOCK):
        byte = 0
        for sub_block in range(_PER_BLOCK):
            k = LANES * i + first + sub_block
            byte |= levels[k] >> 4 << sub_block
            levels[k] &= 15
        out[offset + i] = byte


@kernel(allocates=True)
def quantize_q5_k(address, n_blocks, out, importance=0, row_blocks=1):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 176 a block).

    Two super-blocks at a time fill the 16 lanes; the lanes of a missing one hold zeros.
    """
    x = np.empty(2 * BLOCK_WEIGHTS, np.float32)
    weights = np.empty(2 * BLOCK_WEIGHTS, np.float32)
    work = np.empty(2 * BLOCK_WEIGHTS, np.float32)
    levels = np.empty(2 * BLOCK_WEIGHTS, np.int32)
    scales, minima = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums, variances = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    scale_bits, minimum_bits = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    step, shift = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for block in range(0, n_blocks, 2):
        n_here = min(2, n_blocks - block)
        read_lanes(x, address, block * BLOCK_WEIGHTS, _SUB_BLOCK, _PER_BLOCK * n_here)
        first_try, step_size, n_steps = -0.5, 0.1, 15
        if importance != 0:
            first_try, step_size, n_steps = FIRST, STEP_SIZE, N_STEPS
            weigh_by_importance(
                address, block, n_here, importance, row_blocks, x, weights, variances, sums
            )
        else:
            error_weights(x, weights)
        scale, low, inverse, base = search_scale_and_minimum(
            x, weights, work, _SUB_BLOCK, _HIGHEST, first_try, step_size, n_steps, False
        )

        simd.store(scales, 0, scale)
        simd.store(minima, 0, simd.negate(low))
        for part in range(n_here):
            o, first = (block + part) * BLOCK_BYTES, _PER_BLOCK * part
            if importance != 0:
                d = fitted_six_bits(scales, sums, first, scale_bits, out, o + _D)
                dmin = fitted_six_bits(minima, sums, first, minimum_bits, out, o + _DMIN)
            else:
                d = six_bits(scales, first, scale_bits, out, o + _D)
                dmin = six_bits(minima, first, minimum_bits, out, o + _DMIN)
            write_scales(out, o + _SCALES, scale_bits, minimum_bits, first)
            for lane in range(first, first + _PER_BLOCK):
                step[lane] = d * np.float32(scale_bits[lane])
                shift[lane] = dmin * np.float32(minimum_bits[lane])

        steps, shifts = simd.load_f32x16(step, 0), simd.load_f32x16(shift, 0)
        is_zero = steps == _ZERO
        for i in range(_SUB_BLOCK):
            v = simd.load_f32x16(x, LANES * i)
            # A sub-block whose scale came out 0 keeps the levels of the search.
            level = simd.select(is_zero, inverse * (v - base), (v + shifts) / steps)
            simd.store(levels, LANES * i, clamped_int(level, 0, _HIGHEST))
        for part in range(n_here):
            o = (block + part) * BLOCK_BYTES
            _write_fifth_bits(out, o + _HIGH, levels, _PER_BLOCK * part)
            write_nibbles(out, o + _LEVELS, levels, _PER_BLOCK * part)
