"""Locks that a forked child finds free.

`fork_lock`: whoever forks takes them all first, and both processes give them back. So what they guard is whole in
the child, whatever other threads were doing. Nothing may wait for a second one while it holds one.

`child_lock`: the child gets a new one. For locks that are held for long, or around others; what they guard must be
right at any moment, or thrown away by the child.
"""

from __future__ import annotations

import collections
import itertools
import operator
import os
import threading
import weakref

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_making = threading.Lock()
_held: list[threading.Lock] = []
_acquire, _release = operator.methodcaller("acquire"), operator.methodcaller("release")
# object -> name of its attribute that is a lock
_owners: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def fork_lock() -> threading.Lock:
    """A new threading.Lock that no fork leaves taken."""
    lock = threading.Lock()
    with _making:
        _locks.add(lock)
    return lock


def child_lock(owner: object, name: str = "_lock") -> None:
    """Set an attribute to a new threading.Lock that a forked child replaces by a new one."""
    setattr(owner, name, threading.Lock())
    with _making:
        _owners[owner] = name


def _renew_all():
    for owner, name in list(_owners.items()):
        setattr(owner, name, threading.Lock())


def _take_all():
    # One call of C's takes and notes them, one gives them back: an interrupt in between would leave a lock taken.
    _held.clear()
    _held.extend(itertools.compress([_making], map(_acquire, [_making])))
    locks = list(_locks)
    _held.extend(itertools.compress(locks, map(_acquire, locks)))


def _give_all():
    collections.deque(map(_release, reversed(_held)), maxlen=0)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_give_all, after_in_child=_give_all)
    os.register_at_fork(after_in_child=_renew_all)
