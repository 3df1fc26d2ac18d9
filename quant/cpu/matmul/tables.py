"""Which rows of x meet which matrices, in the form that `activations.begin` reads.

The rows of x that a matrix meets are cut into groups of a few, the columns of a register tile; a group that is not full
repeats its last row. A table is filled from the experts that stand in memory at that moment, by a kernel: a product that is
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


def most_of(n: int, n_experts: int | None) -> tuple[int, int, int]:
    """The most slots, groups and matrices of n rows of x, whichever of the experts they meet; None: a plain matrix."""
    if n_experts is None:
        return n_slots_of(n), -(-n // _WIDEST), 1
    n_matrices = min(n_experts, n)
    return n + most_padding(n, n_experts), min(n, n // _WIDEST + n_matrices), n_matrices


class Tables:
    """The table of one product, to be filled before it is read.

    Parameters
    ----------
    n : int
        Rows of the output, at least 1.
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
        experts: np.ndarray | None = None,
        n_experts: int = 1,
        x_rows: np.ndarray | None = None,
    ) -> None:
        n_slots, n_groups, n_matrices = most_of(n, None if experts is None else n_experts)
        size = 3 + 2 * (n_slots + n_groups + n_matrices)
        self._data = np.zeros(size + 2 * n_experts, np.int64)  # and two counts an expert
        self._arrays = experts, x_rows  # whose addresses stand in the arguments
        self.address = address(self._data)
        self._fill = (
            self.address,
            self.address + 8 * size,
            n,
            n_experts,
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
def tables_of_one(n: int) -> Tables:
    """`Tables` of a plain matrix, kept: most calls are of few sizes."""
    tables = Tables(n)
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
def _fill(table, counts, n, n_experts, ids, ids_step, ids_bytes, rows, rows_step, rows_bytes):
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
        n_groups += (count + _WIDEST - 1) // _WIDEST
        n_matrices += np.int64(count > 0)
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
        for start in range(0, padded, _WIDEST):
            lanes.put(groups + 16 * group, slot + start)
            lanes.put(groups + 16 * group + 8, min(np.int64(_WIDEST), padded - start))
            group += 1
        slot += padded
        lanes.put(ends + 8 * matrix, group)
        lanes.put(matrices + 8 * matrix, np.int64(e))
        matrix += 1
    for i in range(n_slots):
        row = lanes.load_int64(sources + 8 * i)
        if rows_bytes > 0:
            row = _index(rows, rows_step, rows_bytes, row)
        lanes.put(x_sources + 8 * i, row)
