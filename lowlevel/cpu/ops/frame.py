"""Rows handed to threads: what the kernels of all operations share.

A kernel has one signature, ``kernel(integers, floats, task, counter)``: addresses, strides and counts in one int64 array,
factors in one float32 array. So each is compiled once, whatever arrays it meets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.cpu import kept, simd
from lowlevel.cpu.address import address
from lowlevel.cpu.jit import kernel
from lowlevel.cpu.threads import resolve_n_threads, run_workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.checks import Rows


# A second thread pays from about this many bytes on.
THREAD_BYTES = 1 << 19
# What a worker takes from the counter at a time, and does between two looks at signals.
GRAB_BYTES = 1 << 17
SLICE_BYTES = 1 << 27


def rows_kernel(do_rows: Any) -> Any:
    """The compiled kernel of ``do_rows(integers, floats, first, stop)``, an inlined one for some rows."""

    @kernel
    def rows(integers, floats, task, counter):
        n_rows, grab, slice_rows = task[0], task[1], task[2]
        taken = 0
        while taken < slice_rows:
            first = simd.take_task(counter, grab)
            if first >= n_rows:
                return False
            taken += grab
            do_rows(integers, floats, first, min(first + grab, n_rows))
        return True

    return rows


def run(
    rows: Any,
    integers: Sequence[int],
    floats: Sequence[float],
    n_rows: int,
    row_bytes: int,
    n_threads: int | None,
) -> None:
    """Run a kernel of `rows_kernel`.

    Parameters
    ----------
    integers, floats : sequence
    n_rows, row_bytes : int
        How many, and how much memory the work on one moves.
    n_threads : int or None
        As callers give it.

    Raises
    ------
    TypeError, ValueError
        `n_threads` is none; nothing has run.
    """
    n_threads = resolve_n_threads(n_threads)
    if not n_rows:
        return
    row_bytes = max(1, row_bytes)
    n_workers = max(1, min(n_threads, n_rows, n_rows * row_bytes // THREAD_BYTES))
    grab = max(1, min(GRAB_BYTES // row_bytes, -(-n_rows // (4 * n_workers))))
    task = np.array((n_rows, grab, max(1, SLICE_BYTES // row_bytes)), np.int64)
    integers, floats = np.array(integers, np.int64), np.array(floats, np.float32)

    def again():
        counter = np.zeros(1, np.int64)
        run_workers(n_workers, lambda i: rows(integers, floats, task, counter), counter)

    kept.launch(again)


def place(rows: Rows) -> tuple[int, int, int]:
    """(address, plane stride, row stride) of `lowlevel.checks.Rows`."""
    return address(rows.array), rows.plane, rows.row


@kernel(inline=True)
def row_address(integers, at, row, plane_rows):
    """Where a row of an operand starts whose `place` begins at ``integers[at]``."""
    plane = row // plane_rows
    return integers[at] + plane * integers[at + 1] + (row - plane * plane_rows) * integers[at + 2]
