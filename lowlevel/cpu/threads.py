"""Worker threads for CPU kernels: plain Python threads that run compiled code without the GIL.

Numba's own threading layers are not used: OpenMP's dies in a forked child, workqueue aborts when
two threads enter it, and both fix the number of threads at import. Here a call hands `worker(i)` to
n - 1 helper threads and runs worker 0 itself. Kernels take their tasks from a shared counter
(`simd.take_task`), so it does not matter how many helpers come, or when: a busy or missing helper
costs speed, never correctness, and any number of calls may run at once.

The calling thread comes back to Python between slices of work, so Ctrl-C is seen within about
`SLICE_SECONDS`; the other workers are then stopped at their next task and waited for, because they
still read the caller's arrays.
"""

import concurrent.futures
import os
import threading

import numpy as np

# A worker returns to the interpreter after about this much work, to let signals through.
SLICE_SECONDS = 0.05
# No task number reaches this: writing it into a counter stops every worker at its next task.
STOP = np.int64(2**62)

_lock = threading.Lock()
_executor = None
_executor_size = 0


def cpu_count():
    """Number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_n_threads(n_threads):
    """`n_threads` as a positive int; None means every CPU this process may use."""
    if n_threads is None:
        return cpu_count()
    if isinstance(n_threads, bool) or not isinstance(n_threads, (int, np.integer)):
        raise TypeError(f"n_threads: expected a positive int or None (all CPUs), got {n_threads!r}")
    if n_threads < 1:
        raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
    return int(n_threads)


def _forget_executor():
    """After a fork the child has none of the parent's threads: start anew when first needed."""
    global _lock, _executor, _executor_size
    _lock = threading.Lock()
    _executor = None
    _executor_size = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_executor)


def _run_one(future, worker, i):
    """What a helper thread does: worker `i`, unless it was called off before it could start."""
    if future.set_running_or_notify_cancel():
        try:
            worker(i)
        finally:
            future.set_result(None)


def _submit(futures, worker):
    """Hand ``worker(1)``, ``worker(2)``, ... to the shared executor, grown to as many threads.

    The futures are the caller's own: one that could not be handed over for lack of a thread may
    stand in the executor's queue all the same, and the caller must be able to call it off.
    """
    global _executor, _executor_size
    count = len(futures)
    with _lock:
        if _executor_size < count:
            if _executor is not None:
                _executor.shutdown(wait=False)  # what it was given still runs to its end
            _executor = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="kqcap")
            _executor_size = count
        try:
            for i, future in enumerate(futures, 1):
                _executor.submit(_run_one, future, worker, i)
        except RuntimeError:
            pass  # no more threads, or the interpreter is shutting down: the others do it all


def run_workers(n_workers, worker, counter):
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

    futures = [concurrent.futures.Future() for _ in range(n_workers - 1)]
    try:
        try:
            _submit(futures, help_out)
            drain(0)
        except BaseException:
            counter[0] = STOP
            raise
        finally:
            _settle(futures)
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # its tracebacks lead back here: a cycle would keep the arrays alive


def _settle(futures):
    """Call off what has not started and wait for the rest, whatever happens meanwhile.

    Workers use memory that the caller is about to free, and one that has not started yet has
    nothing left to do.
    """
    interrupted = None
    while True:
        try:
            concurrent.futures.wait([f for f in futures if not f.cancel()])
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
