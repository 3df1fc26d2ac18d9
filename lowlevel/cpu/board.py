"""Work put up where threads that are awake see it: a kernel is joined within a microsecond, and nobody needs the GIL for it.

Between two calls a helper thread rests for a moment (`spin.rest`) and looks at the board meanwhile. Whoever has work that other
compiled code can begin, a function and one argument, writes them there and turns the sequence number odd; helpers that see it
come in, take tasks from the board's counter, and leave. An even number closes the board: nobody comes in any more, and once
nobody is inside, the caller's arrays are free again. A helper that does not come costs speed, never correctness.

The board is an array of int64, a cache line for each thing that is written while others read.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .address import address
from .atomics import add, pause, value
from .jit import kernel
from .simd import emit

# Bytes from the board's start. `_SEQUENCE`: odd while there is work. `_INSIDE`: helpers that may be at it. `_TICKET`: the
# number of the next worker. `_RESTING`: helpers that look at the board. Then what the work is.
_SEQUENCE, _INSIDE, _TICKET, _RESTING, COUNTER, _WORK = range(0, 6 * 64, 64)
_FUNCTION, _ARGUMENT, _WORKERS = _WORK, _WORK + 8, _WORK + 16
N_BYTES = 6 * 64
# What `run` says: all is done and the board closed; there is more to do; helpers must be called first; all is done, but
# somebody is inside still.
DONE, MORE, CALL, INSIDE = range(4)
# A helper's tasks, without an end; and how long a caller waits awake for those inside.
_ALL, _PAUSES = 2**62, 4000


def make_board() -> np.ndarray:
    """A closed board: bytes from a multiple of 64 on."""
    memory = np.zeros(N_BYTES + 63, np.uint8)
    start = -address(memory) % 64
    return memory[start : start + N_BYTES]


@intrinsic
def _call(typingctx, function, argument, worker, counter, max_tasks):
    """Call a task kernel (see `jit.task_kernel`) by its address."""

    def build(builder, function, *arguments):
        kind = ir.FunctionType(emit.i64, [emit.i64] * len(arguments))
        return builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)

    return emit.simple(build, *[types.int64] * 6)


# ---------------------------------------------------------------- callers


@kernel
def work(function, argument, worker, counter, max_tasks):
    """A slice of tasks; whether more may be left. Addresses, and int64."""
    return _call(function, argument, worker, counter, max_tasks) != 0


@kernel(inline=True)
def _open(board, function, argument, n_workers):
    simd.write_at(board + _FUNCTION, function)
    simd.write_at(board + _ARGUMENT, argument)
    simd.write_at(board + _WORKERS, n_workers)
    simd.write_at(board + COUNTER, np.int64(0))
    simd.write_at(board + _TICKET, np.int64(1))
    add(board + _SEQUENCE, 1)


@kernel(inline=True)
def _close(board):
    """Nobody comes in any more; whether those inside have left."""
    if value(board + _SEQUENCE) & 1:
        add(board + _SEQUENCE, 1)
    for _ in range(_PAUSES):
        if value(board + _INSIDE) == 0:
            return True
        pause()
    return False


@kernel
def close(board):
    """See `_close`; a second time it does nothing."""
    return _close(board)


@kernel
def run(board, function, argument, n_workers, max_tasks):
    """Put up work for so many workers and begin with it.

    Parameters
    ----------
    board, function, argument : int
        Addresses: of the board, which is closed, and of a task kernel and what it is given.
    n_workers, max_tasks : int
        With the caller; and how many tasks it does before it returns to look for signals.

    Returns
    -------
    int
        `DONE`, `MORE`, `CALL` or `INSIDE`.
    """
    _open(board, function, argument, n_workers)
    if value(board + _RESTING) < n_workers - 1:
        return CALL
    if _call(function, argument, np.int64(0), board + COUNTER, max_tasks) != 0:
        return MORE
    return DONE if _close(board) else INSIDE


# ---------------------------------------------------------------- helpers


@kernel(inline=True)
def _join(board, sequence):
    add(board + _INSIDE, 1)
    if value(board + _SEQUENCE) == sequence:
        worker = add(board + _TICKET, 1)
        if worker < value(board + _WORKERS):
            function, argument = value(board + _FUNCTION), value(board + _ARGUMENT)
            while _call(function, argument, worker, board + COUNTER, np.int64(_ALL)) != 0:
                pass
    add(board + _INSIDE, -1)


@kernel
def join(board):
    """Help with what stands there now, if anything does."""
    sequence = value(board + _SEQUENCE)
    if sequence & 1:
        _join(board, sequence)
    return False


@kernel(inline=True)
def look(board, seen):
    """Help with work that is new since the sequence number was `seen`; the number now."""
    sequence = value(board + _SEQUENCE)
    if sequence != seen and sequence & 1:
        _join(board, sequence)
    return sequence


@kernel(inline=True)
def begin_resting(board):
    """Say that this thread looks at the board from now on. Before the first `look`, which sees what stands there."""
    add(board + _RESTING, 1)


@kernel(inline=True)
def end_resting(board, seen):
    """Say that it does not any more, and help once more with what was put up while it did."""
    add(board + _RESTING, -1)
    look(board, seen)
