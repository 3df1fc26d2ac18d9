"""The search of IQ1 formats: levels -1, 0, 1 and a shift of an eighth up or down, by the best of all ways to part sorted weights.

It is ggml's, operation by operation in float32. Sums over the three parts of sorted weights come of running sums.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .grid_points import entry_at
from .importance import error_weights

_ZERO, _ONE, _LOWEST = np.float32(0.0), np.float32(1.0), np.float32(-3.4028235e38)
_SHIFT = 0.125
# What levels 0, 1, 2 stand for: shifted up, shifted down.
UP = tuple(np.float32(level - 1 + _SHIFT) for level in range(3))
DOWN = tuple(np.float32(level - 1 - _SHIFT) for level in range(3))


@kernel(inline=True)
def sort_order(address, first, n, order):
    """`order`: the weights from number `first` on by size, equal ones as they stand."""
    for i in range(n):
        value, at = simd.read_f32(address, first + i), i
        while at > 0 and simd.read_f32(address, first + order[at - 1]) > value:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i


@kernel(inline=True)
def peak_is_below(address, first, n, smallest):
    """Whether all sizes of `n` weights are below `smallest`."""
    for i in range(n):
        if abs(simd.read_f32(address, first + i)) >= smallest:
            return False
    return True


@kernel(inline=True)
def levels_of(order, n, low, high, is_turned, levels):
    """Level 0 for the first `low` of sorted weights, 1 up to `high`, 2 for the others; turned: 2 for the first ones."""
    for i in range(n):
        level = 0 if i < low else 1 if i < high else 2
        levels[order[i]] = 2 - level if is_turned else level


@kernel(inline=True)
def value_of(level, is_down):
    """What a level stands for at a scale of one."""
    return DOWN[level] if is_down else UP[level]


@kernel(inline=True)
def _error(points, entry, address, first, weights, at, scale, is_down):
    """Of eight weights where they take an entry's levels."""
    error = _ZERO
    for i in range(8):
        difference = scale * value_of(points.levels[entry, i], is_down)
        difference -= simd.read_f32(address, first + at + i)
        error += weights[at + i] * difference * difference
    return error


@kernel(inline=True)
def entry_of(address, first, weights, at, levels, scale, is_down, points):
    """(the grid's entry for eight levels, whether they are one)."""
    point = 0
    for i in range(8):
        point |= levels[at + i] << 2 * i
    return entry_at(point, points, _error, (address, first, weights, at, scale, is_down))


@kernel(inline=True)
def add_products(address, first, weights, at, number, is_down, multiple, sums, points):
    """Add sum(w q x) and sum(w q q) over eight weights to `sums`, a pair."""
    for i in range(8):
        q = value_of(points.levels[number, i], is_down) * multiple
        w = weights[at + i]
        sums[0] += w * q * simd.read_f32(address, first + at + i)
        sums[1] += w * q * q


@kernel(inline=True)
def is_down_at(shifts, eight, n_shifts, n_eights):
    """Whether the shift of a sub-block's eight weights number `eight` is down: the first shift is the highest bit."""
    return shifts >> (n_shifts - 1 - eight * n_shifts // n_eights) & 1 == 1


@kernel(inline=True)
def search_sub_block(
    part, n_shifts, smallest, address, first, importance, at, sigma2, work, points, numbers
):
    """(scale, shifts) of a sub-block, its entries to `numbers`; zeros where its weights count as zeros.

    Parameters
    ----------
    part : inlined kernel
        `part_32` or `part_16`.
    n_shifts : int
        Of a sub-block.
    smallest : float32
        Sub-blocks whose largest weight is smaller count as zero.
    first, at : int
        Number of its first weight, of that of its importance.
    work : tuple of arrays
        weights, order, levels, sums_x, sums_w, sums.
    """
    weights, order, levels, sums_x, sums_w, sums = work
    n = len(order)
    numbers[:] = 0
    if peak_is_below(address, first, n, smallest):
        return _ZERO, 0
    error_weights(address, first, importance, at, n, sigma2, _ZERO, weights)
    sort_order(address, first, n, order)
    scale, low, high, shifts = part(address, first, weights, order, sums_x, sums_w)
    if low < 0:
        return _ZERO, 0
    is_turned = scale < _ZERO
    levels_of(order, n, low, high, is_turned, levels)
    if is_turned:
        scale, shifts = -scale, (1 << n_shifts) - 1 - shifts
    all_on_grid = True
    sums[:] = 0
    for eight in range(len(numbers)):
        is_down = is_down_at(shifts, eight, n_shifts, len(numbers))
        number, is_on = entry_of(address, first, weights, 8 * eight, levels, scale, is_down, points)
        all_on_grid &= is_on
        add_products(address, first, weights, 8 * eight, number, is_down, _ONE, sums, points)
        numbers[eight] = number
    if not all_on_grid and sums[0] > _ZERO and sums[1] > _ZERO:
        scale = sums[0] / sums[1]
    return scale, shifts


# ---------------------------------------------------------------- IQ1_S: one shift for 32 weights


@kernel(inline=True)
def part_32(address, first, weights, order, sums_x, sums_w):
    """(scale, low, high, shifts) of the best way to part 32 weights; low < 0: there is none. Shifts: 1 for down."""
    n = 32
    sums_x[0] = sums_w[0] = _ZERO
    for j in range(n):
        i = order[j]
        sums_x[j + 1] = sums_x[j] + weights[i] * simd.read_f32(address, first + i)
        sums_w[j + 1] = sums_w[j] + weights[i]
    best, scale = _LOWEST, _ZERO
    best_low, best_high, best_shifts = -1, -1, 0
    for low in range(n + 1):
        for high in range(low, n + 1):
            x0, x1, x2 = sums_x[low], sums_x[high] - sums_x[low], sums_x[n] - sums_x[high]
            w0, w1, w2 = sums_w[low], sums_w[high] - sums_w[low], sums_w[n] - sums_w[high]
            for shifts in range(2):
                v0, v1, v2 = DOWN if shifts else UP
                sum_xq = x0 * v0 + x1 * v1 + x2 * v2
                sum_qq = w0 * v0 * v0 + w1 * v1 * v1 + w2 * v2 * v2
                if sum_qq > _ZERO and sum_xq * sum_xq > best * sum_qq:
                    scale = sum_xq / sum_qq
                    best = scale * sum_xq
                    best_low, best_high, best_shifts = low, high, shifts
    return scale, best_low, best_high, best_shifts


# ---------------------------------------------------------------- IQ1_M: a shift for each eight of 16 weights


@kernel(inline=True)
def part_16(address, first, weights, order, sums_x, sums_w):
    """(scale, low, high, shifts) of the best way to part 16 weights; shifts: bit 1 of the first eight, bit 0 of the others."""
    n = 16
    for half in range(2):
        sums_x[half, 0] = sums_w[half, 0] = _ZERO
    for j in range(n):
        i = order[j]
        half = i // 8
        sums_x[half, j + 1] = sums_x[half, j] + weights[i] * simd.read_f32(address, first + i)
        sums_x[1 - half, j + 1] = sums_x[1 - half, j]
        sums_w[half, j + 1] = sums_w[half, j] + weights[i]
        sums_w[1 - half, j + 1] = sums_w[1 - half, j]
    best, scale = _LOWEST, _ZERO
    best_low, best_high, best_shifts = -1, -1, 0
    for low in range(n + 1):
        for high in range(low, n + 1):
            xq_up, qq_up = _half_sums(sums_x, sums_w, low, high, UP)
            xq_down, qq_down = _half_sums(sums_x, sums_w, low, high, DOWN)
            for shifts in range(4):
                first_down, second_down = shifts & 2 != 0, shifts & 1 != 0
                sum_xq = xq_down[0] if first_down else xq_up[0]
                sum_xq += xq_down[1] if second_down else xq_up[1]
                sum_qq = qq_down[0] if first_down else qq_up[0]
                sum_qq += qq_down[1] if second_down else qq_up[1]
                if sum_qq > _ZERO and sum_xq * sum_xq > best * sum_qq:
                    scale = sum_xq / sum_qq
                    best = scale * sum_xq
                    best_low, best_high, best_shifts = low, high, shifts
    return scale, best_low, best_high, best_shifts


@kernel(inline=True)
def _half_sums(sums_x, sums_w, low, high, values):
    """sum(w x q), sum(w q q) of either half, as pairs. Neighbouring values are one apart."""
    v0, v1, v2 = values
    x0 = sums_x[0, 16] * v2 - (sums_x[0, low] + sums_x[0, high])
    x1 = sums_x[1, 16] * v2 - (sums_x[1, low] + sums_x[1, high])
    first, second = v0 * v0 - v1 * v1, v1 * v1 - v2 * v2
    w0 = sums_w[0, 16] * v2 * v2 + sums_w[0, low] * first + sums_w[0, high] * second
    w1 = sums_w[1, 16] * v2 * v2 + sums_w[1, low] * first + sums_w[1, high] * second
    return (x0, x1), (w0, w1)
