"""Worker threads for CPU kernels: plain Python threads that run compiled code without the GIL.

Numba's own threading layers are not used: OpenMP's dies in a forked child, workqueue aborts when
two threads enter it, and both fix the number of threads at import. Here a call hands `worker(i)` to
n - 1 helper threads and runs worker 0 itself. Kernels take their tasks from a shared counter
(`simd.take_task`), so it does not matter how many helpers come, or when: a busy or missing helper
costs speed, never correctness, and any number of calls may run at once.

To wake a thread up takes as long as a small product. So the caller waits awake for its helpers'
last tasks, and a helper for the next call, each for a tenth of a millisecond (`spin`), without the GIL.

The calling thread comes back to Python between slices of work, so Ctrl-C is seen within about
`SLICE_SECONDS`; the other workers are then stopped at their next task and waited for, because they
still read the caller's arrays.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.checks import whole_number
from lowlevel.sure_start import start_thread

from .address import address

if TYPE_CHECKING:
    from collections.abc import Callable


# More than this, or than there are CPUs if those are more, are refused: each is a thread, with scratch.
MOST_THREADS = 256
# A worker returns to the interpreter after about this much work, to let signals through.
SLICE_SECONDS = 0.05
# No task number reaches this: writing it into a counter stops every worker at its next task.
STOP = np.int64(2**62)

_CALLER, _HELPER = "caller", "helper"
# Calls that offered parts so far, for helpers that wait awake for the next one (see spin.rest).
_bell = np.zeros(1, np.int64)
_lock = threading.Lock()
_tasks: queue.SimpleQueue = queue.SimpleQueue()  # a `_Part` each, for the helper threads
_n_helpers = 0


def cpu_count() -> int:
    """Number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_n_threads(n_threads: int | None) -> int:
    """`n_threads` as a positive int; None means every CPU this process may use."""
    if n_threads is None:
        return cpu_count()
    return whole_number(n_threads, "n_threads", 1, max(MOST_THREADS, cpu_count()))


def _forget_helpers():
    """After a fork the child has none of the parent's threads: start anew when first needed."""
    global _lock, _tasks, _n_helpers
    _lock = threading.Lock()
    _tasks = queue.SimpleQueue()
    _n_helpers = 0
    _board.cache_clear()  # on which the parent's helpers stand


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


class _Part:
    """One worker's share of a call, offered to the helper threads."""

    __slots__ = ("_claims", "_ended", "_flags", "_i", "_worker")

    def __init__(self, worker, i, flags):
        self._worker, self._i, self._flags = worker, i, flags
        self._claims, self._ended = [], threading.Lock()
        self._ended.acquire()

    def claim(self, who):
        """Whether `who` was the first to ask, now or before: then it is theirs."""
        self._claims.append(who)
        return self._claims[0] == who

    def run(self):
        """What the helper does that has claimed it. Returns the flag to set, as array and index."""
        try:
            self._worker(self._i)
        finally:
            self._ended.release()
        return self._flags, self._i - 1

    def is_called_off(self):
        """Claim it for the caller, unless a helper has it."""
        if not self.claim(_CALLER):
            return False
        self._flags[self._i - 1] = 1
        return True

    def wait(self):
        """Return once the helper has run it."""
        with self._ended:
            pass


def _help(tasks):
    """A helper thread's life."""
    while True:
        flag = _run_one(tasks.get())
        if flag is not None:
            _rest(*flag)


def _run_one(part):
    """Not in `_help`, whose frame would keep the part alive until the next one comes."""
    return part.run() if part.claim(_HELPER) else None


def _rest(flags, i):
    """Say that a part is done; where a CPU is to spare, stay awake for a moment: another may come at once."""
    if _n_helpers < cpu_count():
        _spinning()[1](flags, i, _bell, _board().address)
    else:
        flags[i] = 1


@functools.cache
def _spinning():
    """(spin.wait_for, spin.rest), compiled."""
    from . import spin  # when first needed: it loads Numba

    flags = np.ones(1, np.int64)
    spin.wait_for(flags)
    spin.rest(flags, 0, np.zeros(1, np.int64), _board().address)
    return spin.wait_for, spin.rest


class _Board:
    """The board of this process (see board.py), and who may write on it: one call at a time."""

    def __init__(self):
        from . import board

        self.lock, self.memory, self.module = threading.Lock(), board.make_board(), board
        self.address = address(self.memory)
        self.counter = self.address + board.COUNTER


@functools.cache
def _board():
    return _Board()


def _submit(parts):
    """Offer parts to the helper threads, started as they are needed.

    Not to a ThreadPoolExecutor: Ctrl-C while it starts a thread leaves one that it does not know of,
    and the interpreter waits for that one for ever when it ends. These are daemons, which it does
    not wait for; all that they do is waited for by `run_workers`.

    A part whose helper could not be started stands in the queue all the same, for another to find
    later: the caller must claim it.
    """
    global _n_helpers
    if sys.is_finalizing():
        return  # no thread starts or wakes up any more: the caller does it all
    _spinning()  # here, not in a helper: a fork must not find it compiling
    with _lock:
        for part in parts:
            _tasks.put(part)
        _bell[0] += 1
        try:
            while _n_helpers < len(parts):
                name = f"kqcap_{_n_helpers}"
                start_thread(threading.Thread(target=_help, args=(_tasks,), name=name, daemon=True))
                _n_helpers += 1
        except RuntimeError:
            pass  # no more threads: the others do it all


def run_workers(n_workers: int, worker: Callable[[int], Any], counter: np.ndarray) -> None:
    """Run ``worker(i)`` for i in range(n_workers), worker 0 on the calling thread.

    Parameters
    ----------
    n_workers : int
        At least 1. With 1 no other thread is touched.
    worker : callable
        ``worker(i) -> bool``: does a slice of work and says whether more may be left.
        Must release the GIL while it computes and take its tasks from `counter`.
    counter : numpy.ndarray
        int64, one element: the number of the next task. Set to `STOP` when any worker raises.

    Raises
    ------
    BaseException
        What a worker raised, once no worker runs any more.
    """

    def drain(i):
        try:
            while worker(i):
                pass
        except BaseException:
            counter[0] = STOP
            raise

    if n_workers == 1:
        drain(0)
        return
    errors = []

    def help_out(i):
        try:
            drain(i)
        except BaseException as error:
            errors.append(error)

    flags = np.zeros(n_workers - 1, np.int64)
    parts = [_Part(help_out, i, flags) for i in range(1, n_workers)]
    try:
        try:
            try:
                _submit(parts)
                drain(0)
            except BaseException:
                counter[0] = STOP
                raise
            finally:
                _settle(parts, flags)
        finally:
            _settle(parts, flags)  # an interrupt as the first one begins skips all of it
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # its tracebacks lead back here: a cycle would keep the arrays alive


def run_tasks(n_workers: int, function: int, argument: int, max_tasks: int) -> None:
    """Run a task kernel (`jit.task_kernel`) on up to `n_workers` threads, this one among them, until no task is left.

    Helpers that rest join within a microsecond, without the GIL (see board.py); others are called as `run_workers`
    calls them. The calling thread comes back to Python after every `max_tasks` tasks of its own, for signals.

    Parameters
    ----------
    n_workers : int
        At least 1. With 1 no other thread is touched.
    function : int
        The kernel's address.
    argument : int
        What it is given: the address of what all workers read, until this returns.
    max_tasks : int
    """
    board = _board()
    if n_workers == 1 or not board.lock.acquire(blocking=False):  # another thread's call is on it
        counter = np.zeros(1, np.int64)
        work, at = board.module.work, address(counter)
        run_workers(n_workers, lambda i: work(function, argument, i, at, max_tasks), counter)
        return
    try:
        _run_on_board(board, n_workers, function, argument, max_tasks)
    finally:
        board.lock.release()


def _run_on_board(board, n_workers, function, argument, max_tasks):
    module, at = board.module, board.address
    parts, flags = [], None
    said = module.CALL
    try:
        said = module.run(at, function, argument, n_workers, max_tasks)
        if said == module.DONE:
            return
        if said == module.CALL:
            flags = np.zeros(n_workers - 1, np.int64)
            parts += (_Part(lambda _: module.join(at), i, flags) for i in range(1, n_workers))
            _submit(parts)
        if said != module.INSIDE:
            while module.work(function, argument, 0, board.counter, max_tasks):
                pass
    except BaseException:
        board.memory[module.COUNTER : module.COUNTER + 8].view(np.int64)[0] = STOP
        raise
    finally:
        if said != module.DONE:
            try:
                _leave(board, parts, flags)
            finally:
                _leave(board, parts, flags)  # an interrupt as the first one begins skips all of it


def _leave(board, parts, flags):
    """Close the board and return once nobody is inside, whatever happens meanwhile. A second time it does nothing."""
    interrupted = None
    while True:
        try:
            while not board.module.close(board.address):
                os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
            _settle(parts, flags)
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _settle(parts, flags):
    """Call off what has not started and wait for the rest, whatever happens meanwhile.

    Workers use memory that the caller is about to free, and one that has not started yet has
    nothing left to do. A second time it does nothing.
    """
    interrupted = None
    while parts:
        try:
            running = [part for part in parts if not part.is_called_off()]
            if running:
                _spin(flags)
            for part in running:
                part.wait()
            parts.clear()
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _spin(flags):
    """Wait for all flags, but not for long: most waits here are shorter than it takes to wake up."""
    _spinning()[0](flags)
