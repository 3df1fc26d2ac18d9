"""The number of threads of NumPy's BLAS while method "steps" runs, put back afterwards."""

import contextlib
import functools
import threading

import threadpoolctl

_lock = threading.Lock()
_users = 0
_limit = None


@functools.cache
def _controller():
    return threadpoolctl.ThreadpoolController()  # finds the BLAS libraries: a millisecond or two


@contextlib.contextmanager
def blas_threads(n_threads):
    """Let BLAS use `n_threads` inside; the caller's setting is back when the last user leaves.

    The setting belongs to the process, so of calls that overlap in time the first one's holds.
    """
    global _users, _limit
    with _lock:
        if _users == 0:
            _limit = _controller().limit(limits=n_threads, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()
                _limit = None
