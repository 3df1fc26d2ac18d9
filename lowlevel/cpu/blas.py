"""The number of threads of NumPy's BLAS while method "steps" runs, put back afterwards."""

from __future__ import annotations

import functools
import os
import threading

import threadpoolctl

from lowlevel.sure_exit import SureExit

_lock = threading.Lock()
_users: set = set()  # a token for every `with blas_threads` that is running
_before: list = []  # what the users' limit replaced: (library, number of threads)


@functools.cache
def _libraries():
    """(BLAS libraries with one setting a process, those with one a thread)."""
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    per_thread = [x for x in found if getattr(x, "threading_layer", None) == "openmp"]
    return [x for x in found if x not in per_thread], per_thread


def _current(libraries):
    return [(library, library.num_threads) for library in libraries]


def _set(settings):
    for library, n in settings:
        # threadpoolctl (3.8 does) lets only one thread of a process set this, for as long as that
        # thread lives, and silently does nothing in others. Here calls of any thread may overlap.
        getattr(library, "_real_set_num_threads", library.set_num_threads)(n)


def _restore_in_child():
    """After a fork the child has none of the other threads, which would have put the setting back."""
    global _lock
    _lock = threading.Lock()
    _users.clear()
    _set(_before)
    _before.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


class blas_threads:
    """Let BLAS use `n_threads` inside; the caller's setting is back when the last user leaves.

    Where the setting belongs to the process, of calls that overlap in time the first one's holds.
    """

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._user = object()

    def __enter__(self):
        per_process, per_thread = _libraries()
        self._before_here = _current(per_thread)
        try:
            _enter(self._user, per_process, self._n_threads)
            _set((library, self._n_threads) for library in per_thread)
        except BaseException:
            _leave(self._user, self._before_here)
            raise

    __exit__ = SureExit()

    def _leave(self, error, again):
        _leave(self._user, self._before_here)


def _enter(user, libraries, n_threads):
    """Ctrl-C may come between any two lines: what is replaced is noted before it is, once."""
    with _lock:
        is_first = not _users
        _users.add(user)
        if not _before:
            _before[:] = _current(libraries)
        if is_first:
            _set((library, n_threads) for library in libraries)


def _leave(user, before_here):
    """Put the setting back, from the start again if Ctrl-C comes meanwhile."""
    interrupted = None
    while True:
        try:
            _set(before_here)
            with _lock:
                _users.discard(
                    user
                )  # gone already: forked inside, and restored there; or left before
                if not _users:
                    _set(_before)
                    _before.clear()
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
