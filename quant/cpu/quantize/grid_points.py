"""Which entries of a grid are near a point that is none: tables for the searches of IQ formats, made when first asked for.

A point is a group of levels, eight of two bits or four of three, the first one lowest. ggml tries not all entries
of a grid for it but those at the least few distances.
"""

import functools
from typing import NamedTuple

import numpy as np

from lowlevel.cpu.jit import kernel

from ...grids import grid

# How many distances, the least ones, count as near.
_DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3, "IQ1_S": 3}
_MOST_SQUARE = 8 * 7 * 7


class GridPoints(NamedTuple):
    """A grid and what is near it.

    Attributes
    ----------
    levels : array of uint8, (entries, levels of a point)
    numbers : array of int32, (points,)
        The entry that a point is; -1 where it is none.
    starts : array of int32, (points + 1,)
        Entries near point p are ``near[starts[p] : starts[p + 1]]``, by distance, then by number.
    near : array of uint16
    """

    levels: np.ndarray
    numbers: np.ndarray
    starts: np.ndarray
    near: np.ndarray


@functools.cache
def grid_points(name: str) -> GridPoints:
    """The `GridPoints` of a grid that `grids.grid` knows."""
    entries = grid(name)
    values = np.unique(entries)
    levels = np.searchsorted(values, entries).astype(np.uint8)
    bits = 2 if levels.shape[1] == 8 else 3
    points = (levels.astype(np.int64) << bits * np.arange(levels.shape[1])).sum(1)
    numbers = np.full(1 << bits * levels.shape[1], -1, np.int32)
    numbers[points] = np.arange(len(levels))
    starts = np.zeros(len(numbers) + 1, np.int32)
    arguments = levels, numbers, bits, len(values), _DISTANCES[name], starts
    _find_near(*arguments, np.empty(0, np.uint16))
    near = np.empty(starts[-1], np.uint16)
    _find_near(*arguments, near)
    return GridPoints(levels, numbers, starts, near)


@kernel(allocates=True)
def _find_near(levels, numbers, bits, n_levels, n_distances, starts, near):
    """Fill `starts`, and `near` where it has the room."""
    n_entries, length = levels.shape
    squares = np.empty(n_entries, np.int32)
    counts = np.zeros(_MOST_SQUARE + 1, np.int32)
    point_levels = np.empty(length, np.int64)
    mask, at = (1 << bits) - 1, 0
    for point in range(len(numbers)):
        starts[point] = at
        is_point = numbers[point] < 0
        for i in range(length):
            point_levels[i] = point >> (bits * i) & mask
            is_point &= point_levels[i] < n_levels
        if not is_point:
            continue
        counts[:] = 0
        for entry in range(n_entries):
            square = 0
            for i in range(length):
                apart = point_levels[i] - levels[entry, i]
                square += apart * apart
            squares[entry] = square
            counts[square] += 1
        found = 0
        for square in range(_MOST_SQUARE + 1):
            if counts[square] == 0:
                continue
            if len(near):
                for entry in range(n_entries):
                    if squares[entry] == square:
                        near[at] = entry
                        at += 1
            else:
                at += counts[square]
            found += 1
            if found == n_distances:
                break
    starts[len(numbers)] = at


@kernel(inline=True)
def entry_at(point, points, error_of, of):
    """(the grid's entry for a point, whether it is one): else of those near it the one of least ``error_of(points, entry, *of)``."""
    number = points.numbers[point]
    if number >= 0:
        return number, True
    best_error, best = np.float32(np.inf), points.near[points.starts[point]]
    for place in range(points.starts[point], points.starts[point + 1]):
        near = points.near[place]
        error = error_of(points, near, *of)
        if error < best_error:
            best_error, best = error, near
    return np.int32(best), False
