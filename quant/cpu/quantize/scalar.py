"""Pieces of quantisers that take one weight after the other."""

import math

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .lanes import SMALLEST_PEAK

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel(inline=True)
def peak_of(address, first, n_weights):
    """The largest size among float32 behind `address`, from number `first` on."""
    largest = _ZERO
    for i in range(n_weights):
        largest = max(largest, abs(simd.read_f32(address, first + i)))
    return largest


@kernel(inline=True)
def inverse_of(d):
    """1 / d; 0 where that is infinite: next to so small a scale ggml's levels mean nothing."""
    inverse = np.float32(1.0) / d
    return _ZERO if np.isinf(inverse) else inverse


@kernel(inline=True)
def round_away(value):
    """The nearest int, halves away from zero."""
    size = math.floor(np.float64(abs(value)) + 0.5)
    return -size if value < _ZERO else size


@kernel(inline=True)
def round_even(value):
    """The nearest int, ties to even, by ggml's trick with bits: see `lanes.nearest_int`."""
    bits = simd.extract(simd.as_i32x16(simd.splat(value + np.float32(12582912.0))), 0)
    return (bits & 0x7FFFFF) - 0x400000


@kernel(inline=True)
def multiple_of_peak(x, weights, first, n, highest, levels):
    """The scale of levels 0 to `highest` that fits ``x[first : first + n]`` best, which is hardly negative.

    ggml's make_qp_quants: nine candidates by their error, then up to five passes in which each level moves to where it
    fits the others' scale best. `levels` (int32) get the levels.
    """
    peak = _ZERO
    for i in range(first, first + n):
        peak = max(peak, x[i])
    if peak < SMALLEST_PEAK:
        for i in range(first, first + n):
            levels[i] = 0
        return _ZERO
    best_inverse = np.float32(highest) / peak
    scale, best_error = _ONE / best_inverse, _ZERO
    for i in range(first, first + n):
        difference = x[i] - scale * np.float32(round_even(best_inverse * x[i]) & 255)
        best_error += weights[i] * difference * difference
    for step in range(-4, 5):
        if step == 0:
            continue
        inverse = (np.float32(0.1) * np.float32(step) + np.float32(highest)) / peak
        scale, error = _ONE / inverse, _ZERO
        for i in range(first, first + n):
            difference = x[i] - scale * np.float32(min(highest, round_even(inverse * x[i])))
            error += weights[i] * difference * difference
        if error < best_error:
            best_error, best_inverse = error, inverse
    sum_xl, sum_ll = _ZERO, _ZERO
    for i in range(first, first + n):
        level = min(highest, round_even(best_inverse * x[i]))
        levels[i] = level & 255  # ggml keeps them as bytes without a sign
        sum_xl += weights[i] * x[i] * np.float32(level)
        sum_ll += weights[i] * np.float32(level) * np.float32(level)
    for _ in range(5):
        changed = False
        for i in range(first, first + n):
            w, level = weights[i], np.float32(levels[i])
            rest_xl, rest_ll = sum_xl - w * x[i] * level, sum_ll - w * level * level
            if not (rest_xl > _ZERO and rest_ll > _ZERO):
                continue
            new = min(highest, round_even(x[i] * rest_ll / rest_xl))
            if new == levels[i]:
                continue
            new_level = np.float32(new)
            rest_xl += w * x[i] * new_level
            rest_ll += w * new_level * new_level
            if rest_xl * rest_xl * sum_ll > sum_xl * sum_xl * rest_ll:
                levels[i] = new & 255
                sum_xl, sum_ll, changed = rest_xl, rest_ll, True
        if not changed:
            break
    return sum_xl / sum_ll if sum_ll > _ZERO else _ZERO


@kernel(inline=True)
def multiple_of_either_sign(x, weights, n, nmax, levels):
    """The scale of levels -nmax to nmax - 1 that fits `n` of x best: `search.search_scale`, of one sub-block."""
    peak, largest = _ZERO, _ZERO
    for i in range(n):
        if abs(x[i]) > largest:
            largest, peak = abs(x[i]), x[i]
    if largest < SMALLEST_PEAK:
        for i in range(n):
            levels[i] = -nmax
        return _ZERO
    scale, best, best_inverse = _ZERO, _ZERO, np.float32(-nmax) / peak
    for step in range(-10, 10):
        if step == 0:
            continue
        # The first one is the plain inverse, then come those around it.
        reach = np.float32(nmax)
        if step > -10:
            reach += np.float32(0.1) * np.float32(step)
        inverse = -reach / peak
        sum_xl, sum_ll = _ZERO, _ZERO
        for i in range(n):
            level = np.float32(max(-nmax, min(nmax - 1, round_even(inverse * x[i]))))
            sum_xl += weights[i] * x[i] * level
            sum_ll += weights[i] * level * level
        if step == -10:
            scale = sum_xl / sum_ll if sum_ll != _ZERO else _ZERO
            best = scale * sum_xl
        elif sum_ll > _ZERO and sum_xl * sum_xl > best * sum_ll:
            scale = sum_xl / sum_ll
            best, best_inverse = scale * sum_xl, inverse
    for i in range(n):
        levels[i] = max(-nmax, min(nmax - 1, round_even(best_inverse * x[i])))
    return scale
