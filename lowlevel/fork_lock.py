"""Locks that a forked child finds free: whoever forks takes them all first, and both processes give them back.

So what they guard is whole in the child, whatever other threads were doing.
"""

import os
import threading
import weakref

_locks = weakref.WeakSet()
_making = threading.Lock()
_held = []


def fork_lock():
    """A new threading.Lock that no fork leaves taken."""
    lock = threading.Lock()
    with _making:
        _locks.add(lock)
    return lock


def _take_all():
    _making.acquire()
    for lock in list(_locks):
        lock.acquire()
        _held.append(lock)


def _give_all():
    while _held:
        _held.pop().release()
    _making.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_give_all, after_in_child=_give_all)
