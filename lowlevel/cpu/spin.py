"""Waiting for other threads without going to sleep, for the few microseconds that waking up would cost more."""

from . import board as boards
from . import simd
from .atomics import pause, put, value
from .jit import kernel

# About a tenth of a millisecond; after work on the board, of which more may follow when one thread has done what lies
# between; a microsecond or two; and what a caller needs to get from the bell into its kernel.
_PAUSES, _BOARD_PAUSES, _LAST_PAUSES, _BEGIN_PAUSES = 4000, 16000, 50, 200


@kernel
def wait_for(flags):
    """Wait a little until each of an array of int64 is set; whether they all are.

    Without the GIL, so that those who set them need not ask for it, and a moment longer, so that they may
    have given it back.
    """
    at, n, i = simd.address(flags), flags.size, 0
    for _ in range(_PAUSES):
        while i < n and value(at + 8 * i) != 0:
            i += 1
        if i == n:
            for _ in range(_LAST_PAUSES):
                pause()
            return True
        pause()
    return False


@kernel
def rest(flags, i, bell, board):
    """Set a flag, then wait a little for the bell to ring; whether it has. Work on the board is done meanwhile.

    Without the GIL as well: the flag is not seen before this thread has given it back. And after the bell
    a moment longer: the caller who rang it holds the GIL until it computes.

    Parameters
    ----------
    flags : numpy.ndarray of int64
    i : int
        Which flag.
    bell : numpy.ndarray of int64
        One element, which every call changes.
    board : int
        The address of a board.
    """
    last, at, left = bell[0], simd.address(bell), _PAUSES
    boards.begin_resting(board)
    put(simd.address(flags) + 8 * i, 1)
    seen, has_rung = 0, False
    while left > 0 and not has_rung:
        now = boards.look(board, seen)
        left = left - 1 if now == seen else _BOARD_PAUSES
        seen, has_rung = now, value(at) != last
        pause()
    boards.end_resting(board, seen)
    if has_rung:
        for _ in range(_BEGIN_PAUSES):
            pause()
    return has_rung
