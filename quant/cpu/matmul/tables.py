"""Which rows of x meet which matrices, in the form that `activations.begin` reads.

The rows of x that a matrix meets are cut into groups of a few, the columns of a register tile; a group that is not full
repeats its last row. A matrix that meets many groups stands in the table several times, each time with some of them, as
many as second caches hold: every panel of its rows passes over these before the next ones. A table is filled from the experts that stand in memory at that moment, by a kernel: a product that is
made again (`lowlevel.cpu.kept`) meets the experts that are chosen now.
"""

from __future__ import annotations

import functools

import numpy as np

from lowlevel.cpu.address import address
from lowlevel.cpu.jit import kernel

from . import lanes
from .layouts import WIDTHS

_WIDEST = WIDTHS[-1]
# Bytes of x that panels pass over at a time, and the fewest rows: for each of so many the panels are unpacked anew.
_X_BYTES, _LEAST_ROWS = 1 << 19, 192


def tail_width(n_rest: int) -> int:
    """The narrowest group that holds `n_rest` columns."""
    return next(width for width in WIDTHS if width >= n_rest)


_TAILS = np.array([0, *(tail_width(rest) for rest in range(1, _WIDEST))], np.int64)


def n_slots_of(n_columns: int) -> int:
    """Columns of all groups of a matrix, with those that pad the last group."""
    return n_columns // _WIDEST * _WIDEST + int(_TAILS[n_columns % _WIDEST])


def most_padding(n: int, n_matrices: int) -> int:
    """The most columns that can pad groups when n columns are spread over the matrices."""
    padding = {rest: tail_width(rest) - rest for rest in range(1, _WIDEST)}
    padded = [rest for rest, pad in padding.items() if pad]
    if not padded:
        return 0
    return max(padding.values()) * min(n_matrices, n // min(padded))


def groups_at_once(columns: int) -> int:
    """Groups of rows of x, of so many columns each, that a matrix meets before its next panel does."""
    return max(_LEAST_ROWS, _X_BYTES // max(1, columns)) // _WIDEST


def most_of(n: int, n_experts: int | None, columns: int) -> tuple[int, int, int]:
    """The most slots, groups and matrices of n rows of x, whichever of the experts they meet; None: a plain matrix."""
    at_once = groups_at_once(columns)
    if n_experts is None:
        n_groups = -(-n // _WIDEST)
        return n_slots_of(n), n_groups, max(1, -(-n_groups // at_once))
    n_matrices = min(n_experts, n)
    n_groups = min(n, n // _WIDEST + n_matrices)
    return n + most_padding(n, n_experts), n_groups, n_matrices + n_groups // at_once


class Tables:
    """The table of one product, to be filled before it is read.

    Parameters
    ----------
    n : int
        Rows of the output, at least 1.
    columns : int
        Of x.
    experts : numpy.ndarray of int32 or int64, (n,), or None
        The matrix that each meets, all of them below `n_experts`; read whenever the table is filled. None: a plain matrix.
    n_experts : int
    x_rows : numpy.ndarray of int32 or int64, (n,), or None
        The row of x for each row of the output, read then too; None: the same.

    Attributes
    ----------
    address : int
        Of int64: `n_slots`, `n_groups` and `n_matrices`, the row of the output and the row of x for each slot, first slot
        and width of each group, the end of each matrix's groups, the matrices.
    """

    def __init__(
        self,
        n: int,
        columns: int,
        experts: np.ndarray | None = None,
        n_experts: int = 1,
        x_rows: np.ndarray | None = None,
    ) -> None:
        of_experts = None if experts is None else n_experts
        n_slots, n_groups, n_matrices = most_of(n, of_experts, columns)
        size = 3 + 2 * (n_slots + n_groups + n_matrices)
        self._data = np.zeros(size + 2 * n_experts, np.int64)  # and two counts an expert
        self._arrays = experts, x_rows  # whose addresses stand in the arguments
        self.address = address(self._data)
        self._fill = (
            self.address,
            self.address + 8 * size,
            n,
            n_experts,
            groups_at_once(columns),
            *_place(experts),
            *_place(x_rows),
        )

    def fill(self) -> None:
        """Read the experts, and the rows of x, that stand there now."""
        _fill(*self._fill)

    @property
    def n_slots(self) -> int:
        return int(self._data[0])

    @property
    def n_groups(self) -> int:
        return int(self._data[1])

    @property
    def n_matrices(self) -> int:
        return int(self._data[2])


@functools.lru_cache(maxsize=64)
def tables_of_one(n: int, columns: int) -> Tables:
    """`Tables` of a plain matrix, kept: most calls are of few sizes."""
    tables = Tables(n, columns)
    tables.fill()
    return tables


def _place(array):
    """(address, stride, bytes of an index); zeros where there is no array."""
    return (0, 0, 0) if array is None else (address(array), array.strides[0], array.itemsize)


@kernel(inline=True)
def _index(address, stride, n_bytes, i):
    """Index i of an array of int32 or int64; 0 where there is none."""
    if n_bytes == 8:
        return lanes.load_int64(address + i * stride)
    if n_bytes == 4:
        return np.int64(lanes.load_uint32(address + i * stride))
    return np.int64(0)


@kernel
def _fill(
    table, counts, n, n_experts, at_once, ids, ids_step, ids_bytes, rows, rows_step, rows_bytes
):
    """A stable counting sort of the rows by their experts. All arguments are int64; `counts`: two an expert."""
    next_slot = counts + 8 * n_experts
    for e in range(n_experts):
        lanes.put(counts + 8 * e, np.int64(0))
    for i in range(n):
        at = counts + 8 * _index(ids, ids_step, ids_bytes, i)
        lanes.put(at, lanes.load_int64(at) + 1)
    n_slots, n_groups, n_matrices = np.int64(0), np.int64(0), np.int64(0)
    for e in range(n_experts):
        count = lanes.load_int64(counts + 8 * e)
        lanes.put(next_slot + 8 * e, n_slots)
        n_slots += count // _WIDEST * _WIDEST + _TAILS[count % _WIDEST]
        groups_of_one = (count + _WIDEST - 1) // _WIDEST
        n_groups += groups_of_one
        n_matrices += (groups_of_one + at_once - 1) // at_once
    lanes.put(table, n_slots)
    lanes.put(table + 8, n_groups)
    lanes.put(table + 16, n_matrices)
    sources = table + 24
    x_sources = sources + 8 * n_slots
    groups = x_sources + 8 * n_slots
    ends = groups + 16 * n_groups
    matrices = ends + 8 * n_matrices
    for i in range(n):
        place = next_slot + 8 * _index(ids, ids_step, ids_bytes, i)
        slot = lanes.load_int64(place)
        lanes.put(place, slot + 1)
        lanes.put(sources + 8 * slot, np.int64(i))
    slot, group, matrix = np.int64(0), np.int64(0), np.int64(0)
    for e in range(n_experts):
        count = lanes.load_int64(counts + 8 * e)
        if count == 0:
            continue
        last = lanes.load_int64(sources + 8 * (slot + count - 1))
        padded = count // _WIDEST * _WIDEST + _TAILS[count % _WIDEST]
        for i in range(count, padded):
            lanes.put(sources + 8 * (slot + i), last)
        groups_of_one = (count + _WIDEST - 1) // _WIDEST
        times = (groups_of_one + at_once - 1) // at_once
        for number in range(times):  # as many groups each time as can be
            for i in range(number * groups_of_one // times, (number + 1) * groups_of_one // times):
                start = i * _WIDEST
                lanes.put(groups + 16 * group, slot + start)
                lanes.put(groups + 16 * group + 8, min(np.int64(_WIDEST), padded - start))
                group += 1
            lanes.put(ends + 8 * matrix, group)
            lanes.put(matrices + 8 * matrix, np.int64(e))
            matrix += 1
        slot += padded
    for i in range(n_slots):
        row = lanes.load_int64(sources + 8 * i)
        if rows_bytes > 0:
            row = _index(rows, rows_step, rows_bytes, row)
        lanes.put(x_sources + 8 * i, row)
