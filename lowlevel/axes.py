"""Axes of strided arrays: those walked together, with as few of them as will do, parts along one, what they span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .arrays import Array


def join_axes(shape: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Drop axes of length 1 and join those that follow each other without a gap in every array.

    Parameters
    ----------
    shape : sequence of int
        None of them 0.
    *strides : sequences of int
        One for each array, in any unit.

    Returns
    -------
    list of tuple
        (length, stride, stride, ...), slowest axis first; empty if there is a single element.
    """
    joined: list[tuple[int, ...]] = []
    for length, *steps in zip(shape, *strides, strict=True):
        if length == 1:
            continue
        if joined and all(
            outer == inner * length for outer, inner in zip(joined[-1][1:], steps, strict=True)
        ):
            joined[-1] = (joined[-1][0] * length, *steps)
        else:
            joined.append((length, *steps))
    return joined


def span(address: int, array: Array) -> tuple[int, int]:
    """(address of the lowest byte of an array that starts at `address`, of the one behind the highest)."""
    low = high = address
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def parts(target: Array, sources: Sequence[Array], axis: int) -> Iterator[tuple[Array, Array]]:
    """(part of `target`, source) for sources that lie one after the other along `axis`."""
    before = (slice(None),) * axis
    start = 0
    for source in sources:
        stop = start + source.shape[axis]
        yield target[before + (slice(start, stop),)], source
        start = stop
