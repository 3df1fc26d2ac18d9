"""Copies between NumPy arrays that never copy twice, and the question whether two arrays share memory."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

# Elements copied at a time where NumPy may put a temporary in between.
CHUNK = 4096
# Candidates that `np.shares_memory` may try; real layouts need a few dozen.
MAX_WORK = 100_000


def copy_disjoint(target: np.ndarray, source: np.ndarray) -> None:
    """Copy `source`, or its one plane to each, into `target`, which shares no element with it (see `Device.copy`).

    NumPy copies through a temporary of full size where it cannot tell quickly that two arrays with a common range
    of addresses are disjoint, as with the left and right half of one matrix. Such arrays are taken apart
    along the widest stride until the parts lie apart.
    """
    if not np.may_share_memory(target, source):
        np.copyto(target, source, casting="no")
    elif target.ndim > 1:
        source = np.broadcast_to(source, target.shape)
        axis = max(range(target.ndim), key=lambda i: abs(target.strides[i]))
        for part, from_part in zip(
            np.moveaxis(target, axis, 0), np.moveaxis(source, axis, 0), strict=True
        ):
            copy_disjoint(part, from_part)
    else:
        for start in range(0, len(target), CHUNK):
            np.copyto(target[start : start + CHUNK], source[start : start + CHUNK], casting="no")


def overlap(first: Any, second: Any) -> bool:
    """Whether two arrays share an element; True as well if that cannot be settled in reasonable time."""
    try:
        most: Any = MAX_WORK  # NumPy's stubs know two special numbers only
        return np.shares_memory(first, second, max_work=most)
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: Any) -> bool:
    """Whether two indices of an array may mean one place: whether an axis steps within what smaller strides span."""
    return _overlaps_itself(array.shape, array.strides, array.itemsize)


@functools.lru_cache(maxsize=1024)  # most calls are of few layouts
def _overlaps_itself(shape, strides, span):
    if 0 in shape:
        return False
    for stride, length in sorted(zip(map(abs, strides), shape, strict=True)):
        if length > 1:
            if stride < span:
                return True
            span += stride * (length - 1)
    return False
