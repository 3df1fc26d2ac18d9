"""The search of IQ2 and IQ3 formats: scales of sub-blocks, and entries of a grid for their weights' sizes.

It is ggml's, operation by operation in float32. What formats differ in is a `Rule`. The kernel finds levels, signs and
scales of super-blocks; a format's file packs them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_points import entry_at, grid_points
from .importance import error_weights, mean_square
from .scalar import multiple_of_peak, round_even

SUPER_BLOCK = 256
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_MOST_SCALE = 15
# The importance of a super-block's columns where ggml takes none and demands it.
ALIKE = np.ones(SUPER_BLOCK, np.float32)


class Rule(NamedTuple):
    """How a format is searched.

    Attributes
    ----------
    sub_block, group : int
        Weights that share a scale; weights of an entry of the grid.
    bits, n_levels : int
        Of a level; how many there are.
    even_signs : bool
        Of eight weights an even number is negative: else the one that matters least changes its sign.
    tries, step : int, float
        Scales around the one that makes the largest weight the highest level: steps -tries to tries.
    from_fit : bool
        They are tried around the scale of a fit to single levels instead.
    refit : int
        Which groups find their entries anew at the best scale: 0 those that were off the grid, 1 all if any was, 2 all.
    smallest : float
        Sub-blocks whose largest weight is smaller count as zero.
    variance : float
        What the mean square of a super-block counts in the weights' importance.
    mean_share : float
        Of that in the weight of errors where there is no importance: mean_share * variance + x**2.
    fudge : float
        What d is multiplied by in the end.
    """

    sub_block: int
    group: int
    bits: int
    n_levels: int
    even_signs: bool
    tries: int
    step: np.float32
    from_fit: bool
    refit: int
    smallest: np.float32
    variance: np.float32
    mean_share: np.float32
    fudge: np.float32


class Found(NamedTuple):
    """Of n super-blocks: d (n,) float32; scales (n, 256 / sub_block), numbers (n, 256 / group), signs (n, 32)."""

    d: np.ndarray
    scales: np.ndarray
    numbers: np.ndarray
    signs: np.ndarray


def rule_of(name: str, **facts: Any) -> Rule:
    """A `Rule`: what the format's row says, and the rest by name."""
    block = block_format(name)
    bits, group = (2, 8) if name.startswith("IQ2") else (3, 4)
    numbers = ("step", "smallest", "variance", "mean_share", "fudge")
    rest: dict[str, Any] = {
        key: np.float32(value) if key in numbers else value for key, value in facts.items()
    }
    return Rule(
        sub_block=block.sub_block, group=group, bits=bits, n_levels=3 if bits == 2 else 8, **rest
    )


def search(
    name: str, rule: Rule, address: int, n_blocks: int, importance: int, row_blocks: int
) -> Found:
    """Search for `n_blocks` super-blocks of float32 behind `address`; `importance`: see quantize.py, 0: none."""
    found = Found(
        np.zeros(n_blocks, np.float32),
        np.zeros((n_blocks, SUPER_BLOCK // rule.sub_block), np.uint8),
        np.zeros((n_blocks, SUPER_BLOCK // rule.group), np.uint16),
        np.zeros((n_blocks, SUPER_BLOCK // 8), np.uint8),
    )
    _search(address, n_blocks, importance, row_blocks, rule, grid_points(name), found)
    return found


@kernel(inline=True)
def _sizes_and_signs(address, first, rule, weights, sizes, signs):
    """Sizes of a sub-block's weights; of an odd number of signs the least important one is given up: a size below zero."""
    for eight in range(rule.sub_block // 8):
        byte, n_minus = 0, 0
        for i in range(8):
            x = simd.read_f32(address, first + 8 * eight + i)
            sizes[8 * eight + i] = x
            if not x >= _ZERO:
                sizes[8 * eight + i] = -x
                byte |= 1 << i
                n_minus += 1
        if rule.even_signs and n_minus % 2:
            least = 0
            least_error = weights[8 * eight] * sizes[8 * eight] * sizes[8 * eight]
            for i in range(1, 8):
                error = weights[8 * eight + i] * sizes[8 * eight + i] * sizes[8 * eight + i]
                if error < least_error:
                    least, least_error = i, error
            sizes[8 * eight + least] = -sizes[8 * eight + least]
            byte ^= 1 << least
        signs[eight] = byte


@kernel(inline=True)
def _error(points, entry, sizes, roots, at, scale, rule):
    """Of a group where it takes an entry's levels."""
    error = _ZERO
    for i in range(rule.group):
        difference = scale * np.float32(2 * points.levels[entry, i] + 1) - sizes[at + i]
        error += roots[at + i] * difference * difference
    return error


@kernel(inline=True)
def _entry(sizes, roots, at, inverse, scale, rule, points):
    """(the grid's entry for a group at a scale, whether the nearest levels are on the grid)."""
    point = 0
    for i in range(rule.group):
        level = round_even(_HALF * (inverse * sizes[at + i] - _ONE))
        level = max(0, min(rule.n_levels - 1, level))
        point |= level << (rule.bits * i)
    return entry_at(point, points, _error, (sizes, roots, at, scale, rule))


@kernel(inline=True)
def _sums(sizes, weights, numbers, rule, points):
    """sum(w x q) and sum(w q q) over a sub-block, q the entries' values at a scale of one."""
    sum_xq, sum_qq = _ZERO, _ZERO
    for i in range(rule.sub_block):
        q = np.float32(2 * points.levels[numbers[i // rule.group], i % rule.group] + 1)
        w = weights[i]
        sum_xq += w * sizes[i] * q
        sum_qq += w * q * q
    return sum_xq, sum_qq


@kernel(inline=True)
def _search_sub_block(sizes, weights, roots, rule, points, work, tried, numbers, on_grid):
    """(the scale of a sub-block, whether its weights are more than zeros), its entries to `numbers`."""
    n_groups = rule.sub_block // rule.group
    highest = np.float32(2 * rule.n_levels - 1)
    peak = sizes[0]
    for i in range(1, rule.sub_block):
        peak = max(peak, sizes[i])
    if peak < rule.smallest or peak == _ZERO:
        return _ZERO, False
    scale, best = peak / highest, _ZERO
    if rule.from_fit:
        scale = multiple_of_peak(sizes, weights, 0, rule.sub_block, rule.n_levels + 1, work)
        peak = scale * np.float32(rule.n_levels)
        if peak <= _ZERO:
            return _ZERO, False
    for group in range(n_groups):
        numbers[group], on_grid[group] = points.numbers[0], rule.refit != 1
    for step in range(-rule.tries, rule.tries + 1):
        inverse = (highest + np.float32(step) * rule.step) / peak
        this_scale, all_on_grid = _ONE / inverse, 0
        for group in range(n_groups):
            at = rule.group * group
            tried[group], is_on = _entry(sizes, roots, at, inverse, this_scale, rule, points)
            all_on_grid |= int(is_on) << group
        sum_xq, sum_qq = _sums(sizes, weights, tried, rule, points)
        if sum_qq > _ZERO and sum_xq * sum_xq > best * sum_qq:
            scale = sum_xq / sum_qq
            best = scale * sum_xq
            for group in range(n_groups):
                numbers[group] = tried[group]
                on_grid[group] = all_on_grid >> group & 1 == 1
    return _refitted(scale, sizes, weights, roots, rule, points, numbers, on_grid), True


@kernel(inline=True)
def _refitted(scale, sizes, weights, roots, rule, points, numbers, on_grid):
    """The scale after groups have found their entries anew at it."""
    n_groups = rule.sub_block // rule.group
    any_off = rule.refit == 2
    for group in range(n_groups):
        any_off |= not on_grid[group]
    if not (any_off and scale > _ZERO):
        return scale
    inverse = _ONE / scale
    for group in range(n_groups):
        if rule.refit > 0 or not on_grid[group]:
            at = rule.group * group
            numbers[group], _ = _entry(sizes, roots, at, inverse, scale, rule, points)
    sum_xq, sum_qq = _sums(sizes, weights, numbers, rule, points)
    return sum_xq / sum_qq if sum_qq > _ZERO else scale


@kernel(allocates=True)
def _search(address, n_blocks, importance, row_blocks, rule, points, found):
    length = rule.sub_block
    weights, roots = np.empty(length, np.float32), np.empty(length, np.float32)
    sizes, work = np.empty(length, np.float32), np.empty(length, np.int32)
    tried, on_grid = np.empty(8, np.int32), np.empty(8, np.bool_)
    numbers, signs = np.empty(8, np.int32), np.empty(4, np.int64)
    scales = np.empty(SUPER_BLOCK // length, np.float32)
    n_groups = length // rule.group
    for block in range(n_blocks):
        largest = _ZERO
        sigma2 = rule.variance * mean_square(address, SUPER_BLOCK * block, SUPER_BLOCK)
        for part in range(len(scales)):
            first = SUPER_BLOCK * block + length * part
            at = SUPER_BLOCK * (block % row_blocks) + length * part
            error_weights(address, first, importance, at, length, sigma2, rule.mean_share, weights)
            for i in range(length):
                roots[i] = math.sqrt(weights[i])
            _sizes_and_signs(address, first, rule, weights, sizes, signs)
            scale, is_more = _search_sub_block(
                sizes, weights, roots, rule, points, work, tried, numbers, on_grid
            )
            flip = 0
            if scale < _ZERO:
                scale, flip = -scale, 255
            scales[part] = scale
            largest = max(largest, scale)
            if not is_more:
                continue
            for group in range(n_groups):
                found.numbers[block, n_groups * part + group] = numbers[group]
            for eight in range(length // 8):
                found.signs[block, length // 8 * part + eight] = signs[eight] ^ flip
        if largest == _ZERO:
            continue
        d = largest / np.float32(2 * _MOST_SCALE + 1)
        found.d[block] = d * rule.fudge
        inverse = _ONE / d
        for part in range(len(scales)):
            multiple = round_even(_HALF * (inverse * scales[part] - _ONE))
            found.scales[block, part] = max(0, min(_MOST_SCALE, multiple))


def joined(values: np.ndarray, n: int, bits: int) -> np.ndarray:
    """Each `n` numbers of `bits` bits as one, the first one lowest: uint32."""
    parts = values.astype(np.uint32).reshape(len(values), -1, n)
    return np.bitwise_or.reduce(parts << np.arange(n, dtype=np.uint32) * np.uint32(bits), axis=-1)
