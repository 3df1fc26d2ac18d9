"""The searches for block scales: ggml's, on sixteen sub-blocks at once.

All follow the published algorithms of ggml's reference quantisers (make_qx_quants,
make_q3_quants, make_qkx2_quants and make_qkx3_quants), operation by operation in float32, which is what makes the
results the same to the bit; see `quantize_lanes` for the layout. A lane whose candidate is no
better keeps what it had, where the scalar code would not enter its `if`.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .lanes import LANES, SMALLEST_PEAK, clamped, largest_lane, peaks

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@kernel(inline=True)
def scale_by_peak(low, high, lowest):
    """Of 32 weights, two f32x16: what makes the one of largest size (the first such one) the level `lowest`.

    Returns
    -------
    scale : float32
    inverse, offset : float32
        Levels are the whole parts of ``inverse * weight + offset``. Where the scale is zero as a half
        ggml leaves all levels 0.
    """
    peak, high_peak = largest_lane(low), largest_lane(high)
    if abs(high_peak) > abs(peak):
        peak = high_peak
    scale = peak / np.float32(lowest)
    inverse, offset = _ONE / scale, np.float32(0.5 - lowest)
    if scale == _ZERO:
        inverse = _ZERO
    elif np.isinf(inverse):
        inverse, offset = _ZERO, _ZERO
    return scale, inverse, offset


@kernel(inline=True)
def _first_zero(low, high):
    """The first of 32 weights that is zero, with its sign: ggml keeps the first of equal ones."""
    for lane in range(LANES):
        if simd.extract(low, lane) == _ZERO:
            return simd.extract(low, lane)
    for lane in range(LANES):
        if simd.extract(high, lane) == _ZERO:
            return simd.extract(high, lane)
    return _ZERO


@kernel(inline=True)
def scale_and_minimum(low, high, highest):
    """Of 32 weights, two f32x16: their least one, and the scale that makes the greatest the level `highest`.

    Returns
    -------
    scale, minimum : float32
    inverse, offset : float32
        Levels are the whole parts of ``inverse * (weight - minimum) + offset``; 0 all where the scale is so
        small that it has no inverse.
    """
    minimum = -simd.max_lanes(simd.negate(simd.minimum(low, high)))
    if minimum == _ZERO:
        minimum = _first_zero(low, high)
    reach = simd.max_lanes(simd.maximum(low, high)) - minimum + _ZERO  # plus 0: of zeros not -0
    scale = reach / np.float32(highest)
    inverse, offset = _ONE / scale, np.float32(0.5)
    if scale == _ZERO or np.isinf(inverse):
        inverse, offset = _ZERO, _ZERO
    return scale, minimum, inverse, offset


@kernel(inline=True)
def _weighted_fit(x, weights, n_weights, inverse, nmax):
    """sum(w x l) and sum(w l l) for the levels l that `inverse` gives."""
    sum_xl = simd.splat(_ZERO)
    sum_ll = simd.splat(_ZERO)
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        level = clamped(inverse * v, -nmax, nmax - 1)
        w = simd.load_f32x16(weights, LANES * i)
        sum_xl += w * v * level
        sum_ll += w * level * level
    return sum_xl, sum_ll


@kernel(inline=True)
def search_scale(x, weights, n_weights, nmax):
    """Scale of levels -nmax ... nmax - 1 that fits best, errors weighted by `weights`.

    Nineteen candidates around the one that maps the largest weight to -nmax.

    Returns
    -------
    scale, inverse : f32x16
        The fitted scale, and the factor whose rounded products with x were the levels it was
        fitted to. Both 0 where all weights are as good as zero.
    """
    largest, peak = peaks(x, n_weights)
    is_zero = largest < SMALLEST_PEAK
    peak = simd.select(is_zero, simd.splat(_ONE), peak)
    best_inverse = simd.splat(np.float32(-nmax)) / peak
    sum_xl, sum_ll = _weighted_fit(x, weights, n_weights, best_inverse, nmax)
    scale = simd.select(sum_ll == _ZERO, simd.splat(_ZERO), sum_xl / sum_ll)
    best = scale * sum_xl
    for step in range(-9, 10):
        if step != 0:
            factor = -(np.float32(nmax) + np.float32(0.1) * np.float32(step))
            inverse = simd.splat(factor) / peak
            sum_xl, sum_ll = _weighted_fit(x, weights, n_weights, inverse, nmax)
            better = (sum_ll > _ZERO) & (sum_xl * sum_xl > best * sum_ll)
            scale = simd.select(better, sum_xl / sum_ll, scale)
            best = simd.select(better, scale * sum_xl, best)
            best_inverse = simd.select(better, inverse, best_inverse)
    zero = simd.splat(_ZERO)
    return simd.select(is_zero, zero, scale), simd.select(is_zero, zero, best_inverse)


@kernel(inline=True)
def search_levels(x, levels, n_weights, nmax):
    """Levels -nmax ... nmax - 1 by coordinate descent, errors weighted by x**2.

    Up to five passes; each weight in turn moves to the level that fits the others' scale best.
    A lane that has come to rest repeats itself unchanged, so all stop together.

    Returns
    -------
    scale : f32x16
        0 where all weights are as good as zero; `levels` (f32, in lanes) then holds -nmax.
    """
    largest, peak = peaks(x, n_weights)
    is_zero = largest < SMALLEST_PEAK
    inverse = simd.splat(np.float32(-nmax)) / simd.select(is_zero, simd.splat(_ONE), peak)
    sum_xl, sum_ll = simd.splat(_ZERO), simd.splat(_ZERO)
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        level = clamped(inverse * v, -nmax, nmax - 1)
        w = v * v
        sum_xl += w * v * level
        sum_ll += w * level * level
        simd.store(levels, LANES * i, level)
    for _ in range(5):
        changed = False
        for i in range(n_weights):
            v = simd.load_f32x16(x, LANES * i)
            level = simd.load_f32x16(levels, LANES * i)
            w = v * v
            rest_xl = sum_xl - w * v * level
            rest_ll = sum_ll - w * level * level
            new_level = clamped(v * rest_ll / rest_xl, -nmax, nmax - 1)
            new_xl = rest_xl + w * v * new_level
            new_ll = rest_ll + w * new_level * new_level
            gain = new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll
            moved = (new_level < level) | (new_level > level)
            better = (rest_xl > _ZERO) & moved & (new_ll > _ZERO) & gain
            simd.store(levels, LANES * i, simd.select(better, new_level, level))
            sum_xl = simd.select(better, new_xl, sum_xl)
            sum_ll = simd.select(better, new_ll, sum_ll)
            changed |= simd.any_set(better)
        if not changed:
            break
    zero = simd.splat(_ZERO)
    for i in range(n_weights):
        level = simd.load_f32x16(levels, LANES * i)
        simd.store(levels, LANES * i, simd.select(is_zero, simd.splat(np.float32(-nmax)), level))
    return simd.select(is_zero | (sum_ll <= _ZERO), zero, sum_xl / sum_ll)


@kernel(inline=True)
def _error(x, weights, levels, n_weights, scale, low, absolute_error):
    """Weighted error of ``scale * level + low``: of its size, or of its square."""
    error = simd.splat(_ZERO)
    for i in range(n_weights):
        level = simd.load_f32x16(levels, LANES * i)
        difference = scale * level + low - simd.load_f32x16(x, LANES * i)
        if absolute_error:
            difference = simd.absolute(difference)
        else:
            difference = difference * difference
        error += simd.load_f32x16(weights, LANES * i) * difference
    return error


@kernel(inline=True)
def search_scale_and_minimum(
    x, weights, levels, n_weights, nmax, first, step_size, n_steps, absolute_error
):
    """Scale and minimum of levels 0 ... nmax: ``x ~ scale * level + minimum``, minimum <= 0.

    Candidates spread the levels over nmax + first + step_size * step, step = 0 ... n_steps; each is
    fitted by weighted least squares and kept if its error is smaller. A kept minimum is the base
    of the candidates after it.

    Parameters
    ----------
    x, weights : float32 arrays
        In lanes; `weights` are the errors' weights.
    levels : float32 array
        Work space of the same size.
    absolute_error : bool
        Candidates are compared by absolute, not by squared error.

    Returns
    -------
    scale, minimum : f32x16
    inverse, base : f32x16
        The kept levels were ``round(inverse * (x - base))``.
    """
    v = simd.load_f32x16(x, 0)
    low, high = v, v
    sum_w = simd.load_f32x16(weights, 0)
    sum_x = sum_w * v
    for i in range(1, n_weights):
        v = simd.load_f32x16(x, LANES * i)
        w = simd.load_f32x16(weights, LANES * i)
        low = simd.minimum(v, low)
        high = simd.maximum(v, high)
        sum_w += w
        sum_x += w * v
    low = simd.select(low > _ZERO, simd.splat(_ZERO), low)

    # Where all weights are one negative number or zero, high == low: the infinite factor gives
    # levels 0 and scale 0, which is right, and no candidate below is better.
    inverse = simd.splat(np.float32(nmax)) / (high - low)
    scale = simd.splat(_ONE) / inverse
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        simd.store(levels, LANES * i, clamped(inverse * (v - low), 0, nmax))
    best_error = _error(x, weights, levels, n_weights, scale, low, absolute_error)
    best_inverse, base = inverse, low

    for step in range(n_steps + 1):
        reach = np.float32(first) + np.float32(step_size) * np.float32(step) + np.float32(nmax)
        inverse = simd.splat(reach) / (high - low)
        sum_l, sum_ll, sum_xl = simd.splat(_ZERO), simd.splat(_ZERO), simd.splat(_ZERO)
        for i in range(n_weights):
            v = simd.load_f32x16(x, LANES * i)
            w = simd.load_f32x16(weights, LANES * i)
            level = clamped(inverse * (v - low), 0, nmax)
            simd.store(levels, LANES * i, level)
            wl = w * level
            sum_l += wl
            sum_ll += wl * level
            sum_xl += wl * v
        determinant = sum_w * sum_ll - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        above_zero = new_low > _ZERO
        new_low = simd.select(above_zero, simd.splat(_ZERO), new_low)
        new_scale = simd.select(above_zero, sum_xl / sum_ll, new_scale)
        error = _error(x, weights, levels, n_weights, new_scale, new_low, absolute_error)
        better = (determinant > _ZERO) & (error < best_error)
        best_inverse = simd.select(better, inverse, best_inverse)
        base = simd.select(better, low, base)
        best_error = simd.select(better, error, best_error)
        scale = simd.select(better, new_scale, scale)
        low = simd.select(better, new_low, low)
    return scale, low, best_inverse, base
