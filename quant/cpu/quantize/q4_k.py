"""float32 -> Q4_K: d and dmin (half), 8 scales and minima of 6 bits, 128 bytes of nibbles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .importance import FIRST, N_STEPS, STEP_SIZE, lane_sums, mean_square, read_importance, weigh
from .lanes import LANES, clamped_int, nearest_int, read_lanes, write_half
from .scalar import multiple_of_peak
from .search import search_scale_and_minimum

if TYPE_CHECKING:
    from ...formats import BlockFormat


FORMAT = block_format("Q4_K")
BLOCK_WEIGHTS = FORMAT.block_weights
_SUB_BLOCK = FORMAT.sub_block
_PER_BLOCK = BLOCK_WEIGHTS // _SUB_BLOCK
(_LEVELS,) = FORMAT.offsets("qs")
_ZERO = np.float32(0.0)


@kernel(inline=True)
def error_weights(x, weights):
    """|x| plus the root mean square of its sub-block."""
    total = simd.splat(_ZERO)
    for i in range(_SUB_BLOCK):
        v = simd.load_f32x16(x, LANES * i)
        total += v * v
    mean = simd.square_root(total * (1.0 / _SUB_BLOCK))
    for i in range(_SUB_BLOCK):
        v = simd.load_f32x16(x, LANES * i)
        simd.store(weights, LANES * i, mean + simd.absolute(v))


@kernel(inline=True)
def six_bits(values, first, multiples, out, offset):
    """8 non-negative values as 6-bit multiples of one half, which is stored at `offset`.

    ``values[first : first + 8]`` become ``multiples[first : first + 8]`` (int32); returns the
    half's value.
    """
    largest = _ZERO
    for lane in range(first, first + _PER_BLOCK):
        largest = max(largest, values[lane])
    inverse = np.float32(63.0) / largest if largest > _ZERO else _ZERO
    # All 16 lanes are stored; the second super-block's come again with its own factor.
    rounded = nearest_int(simd.splat(inverse) * simd.load_f32x16(values, 0)) & 255
    rounded = simd.minimum(rounded, simd.splat(63))
    for lane in range(first, first + _PER_BLOCK):
        multiples[lane] = simd.extract(rounded, lane)
    return write_half(out, offset, largest / np.float32(63.0))


@kernel(inline=True)
def fitted_six_bits(values, sums, first, multiples, out, offset):
    """As `six_bits`, by the fit of `scalar.multiple_of_peak`; `sums`: what each sub-block counts."""
    d = multiple_of_peak(values, sums, first, _PER_BLOCK, 63, multiples)
    return write_half(out, offset, d)


@kernel(inline=True)
def weigh_by_importance(
    address, block, n_here, importance, row_blocks, x, weights, variances, sums
):
    """The weights of errors of two super-blocks with an importance matrix, and their sums."""
    read_importance(weights, importance, block, n_here, row_blocks, _SUB_BLOCK, _PER_BLOCK)
    variances[:] = 0
    for part in range(n_here):
        variance = 2 * mean_square(address, (block + part) * BLOCK_WEIGHTS, BLOCK_WEIGHTS)
        variances[_PER_BLOCK * part : _PER_BLOCK * (part + 1)] = variance
    weigh(x, weights, variances, _SUB_BLOCK)
    lane_sums(weights, _SUB_BLOCK, sums)


@kernel(inline=True)
def write_scales(out, offset, scales, minima, first):
    """Pack 8 scales and 8 minima of 6 bits in 12 bytes: the second four share their high bits."""
    for i in range(4):
        scale, minimum = scales[first + i], minima[first + i]
        late_scale, late_minimum = scales[first + 4 + i], minima[first + 4 + i]
        out[offset + i] = scale | late_scale >> 4 << 6
        out[offset + 4 + i] = minimum | late_minimum >> 4 << 6
        out[offset + 8 + i] = (late_scale & 15) | (late_minimum & 15) << 4


@kernel(inline=True)
def write_nibbles(out, offset, levels, first):
    """Byte ``32 * pair + i``: weight i of two consecutive sub-blocks."""
    for pair in range(4):
        lane = first + 2 * pair
        for i in range(_SUB_BLOCK):
            k = LANES * i + lane
            out[offset + _SUB_BLOCK * pair + i] = levels[k] | levels[k + 1] << 4


def make_quantize(block: BlockFormat, begin: Any, n_tries: int, write_levels: Any) -> Any:
    """The quantiser of Q4_K or Q5_K, which differ in their levels.

    Two super-blocks at a time fill the 16 lanes; the lanes of a missing one hold zeros.

    Parameters
    ----------
    block : BlockFormat
    begin, n_tries : float, int
        Where the search for scales and minima begins without an importance matrix, and how many it tries.
    write_levels : callable
        Of kernels: ``write_levels(out, o, levels, first)``, the levels of a super-block, from lane `first` on, to its bytes
        from `o` on.
    """
    n_bytes, highest = block.block_bytes, block.codes[1]
    d_at, dmin_at, scales_at = block.offsets("d", "dmin", "scales")

    @kernel(allocates=True)
    def quantize(address, n_blocks, out, importance=0, row_blocks=1):
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
            first_try, step_size, n_steps = begin, 0.1, n_tries
            if importance != 0:
                first_try, step_size, n_steps = FIRST, STEP_SIZE, N_STEPS
                weigh_by_importance(
                    address, block, n_here, importance, row_blocks, x, weights, variances, sums
                )
            else:
                error_weights(x, weights)
            scale, low, inverse, base = search_scale_and_minimum(
                x, weights, work, _SUB_BLOCK, highest, first_try, step_size, n_steps, False
            )

            simd.store(scales, 0, scale)
            simd.store(minima, 0, simd.negate(low))
            for part in range(n_here):
                o, first = (block + part) * n_bytes, _PER_BLOCK * part
                if importance != 0:
                    d = fitted_six_bits(scales, sums, first, scale_bits, out, o + d_at)
                    dmin = fitted_six_bits(minima, sums, first, minimum_bits, out, o + dmin_at)
                else:
                    d = six_bits(scales, first, scale_bits, out, o + d_at)
                    dmin = six_bits(minima, first, minimum_bits, out, o + dmin_at)
                write_scales(out, o + scales_at, scale_bits, minimum_bits, first)
                for lane in range(first, first + _PER_BLOCK):
                    step[lane] = d * np.float32(scale_bits[lane])
                    shift[lane] = dmin * np.float32(minimum_bits[lane])

            steps, shifts = simd.load_f32x16(step, 0), simd.load_f32x16(shift, 0)
            is_zero = steps == _ZERO
            for i in range(_SUB_BLOCK):
                v = simd.load_f32x16(x, LANES * i)
                # A sub-block whose scale came out 0 keeps the levels of the search.
                level = simd.select(is_zero, inverse * (v - base), (v + shifts) / steps)
                simd.store(levels, LANES * i, clamped_int(level, 0, highest))
            for part in range(n_here):
                o = (block + part) * n_bytes
                write_levels(out, o, levels, _PER_BLOCK * part)

    return quantize


@kernel(inline=True)
def _write_levels(out, o, levels, first):
    write_nibbles(out, o + _LEVELS, levels, first)


# Float32 behind an address into blocks of 144 bytes.
quantize_q4_k = make_quantize(FORMAT, -1.0, 20, _write_levels)
