"""Streams of the simulated device: launches run at once, but what a GPU would leave unordered is an error.

    with cudasim.Stream():
        lowlevel.attention(q, k, v, pool=pool)

A launch or copy comes after what its stream did before, after the events that its stream waits for, and after what
the program has waited for. One that touches bytes which another piece of work has touched that it does not come after
raises `StreamError`, if one of the two writes. What counts as touched is the whole of each array that is an argument.

Nothing is looked at until the first `Stream` is made. Accesses by NumPy itself (``a[...] = 1``) are not.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING

from lowlevel.axes import span
from lowlevel.fork_lock import child_lock

from .errors import CudaSimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


class StreamError(CudaSimError):
    """Work that touches memory which another stream may still be working on."""


class Event:
    """A moment of a stream: all that was queued on it by then.

    Attributes
    ----------
    clock : dict of int to int
        Of each stream the last piece of work that lies before.
    """

    def __init__(self, clock: dict[int, int]) -> None:
        self.clock = clock


class Stream:
    """A queue of work. As a context manager: the calling thread's current one.

    Attributes
    ----------
    ptr : int
    """

    def __init__(self) -> None:
        with _LOG.lock:
            if not _streams:  # until now nothing was looked at, and all was in order
                _LOG.entries.clear()
            self.ptr = next(_numbers)
            self.clock: dict[int, int] = {}
            _streams.add(self)

    def record(self) -> Event:
        """An `Event` after all that is queued now."""
        with _LOG.lock:
            return Event({**self.clock})

    def wait(self, event: Event) -> None:
        """Let later work of this stream come after an event."""
        with _LOG.lock:
            _join(self.clock, event.clock)

    def synchronise(self) -> None:
        """Let the program wait for all that is queued."""
        with _LOG.lock:
            _join(_LOG.done, self.clock)

    def __enter__(self):
        _of_thread.streams = [*_entered(), self]
        return self

    def __exit__(self, *exception):
        _of_thread.streams = _entered()[:-1]


def current() -> Stream:
    """The calling thread's current stream."""
    return _entered()[-1] if _entered() else DEFAULT


def settle(event: Event) -> None:
    """Let the program wait for an event."""
    with _LOG.lock:
        _join(_LOG.done, event.clock)


def finish() -> None:
    """Let the program wait for all work of all streams."""
    with _LOG.lock:
        for stream in (DEFAULT, *_streams):
            _join(_LOG.done, stream.clock)


def touch(what: str, reads: Sequence[np.ndarray] = (), writes: Sequence[np.ndarray] = ()) -> None:
    """Note work on the current stream.

    Parameters
    ----------
    what : str
        For errors: a kernel's name.
    reads, writes : sequence of CudaSimArray

    Raises
    ------
    StreamError
    """
    if _streams:
        ranges = [(*span(array.ctypes.data, array), True) for array in writes if array.size]
        ranges += [(*span(array.ctypes.data, array), False) for array in reads if array.size]
        with _LOG.lock:
            _LOG.touch(what, current(), ranges)


def forget(address: int, n_bytes: int) -> None:
    """New memory: what was done at these addresses before is over."""
    if _streams:
        with _LOG.lock:
            _LOG.forget(address, address + n_bytes)


class _Log:
    """What the streams have touched and not been overtaken in."""

    lock: threading.Lock

    def __init__(self):
        child_lock(self, "lock")
        self.done = {}  # clock of what the program has waited for
        self.entries = []  # (start, end, writes, ptr, tick, what)

    def touch(self, what, stream, ranges):
        _join(stream.clock, self.done)
        for start, end, writes in ranges:
            for entry in self.entries:
                if self._hurts(entry, start, end, writes, stream.clock):
                    raise StreamError(
                        f"{what} on stream {stream.ptr} {'writes' if writes else 'reads'} memory that "
                        f"{entry[5]} on stream {entry[3]} {'writes' if entry[2] else 'reads'}; "
                        "nothing makes the one wait for the other"
                    )
        tick = stream.clock.get(stream.ptr, 0) + 1
        stream.clock[stream.ptr] = tick
        for start, end, writes in ranges:
            # what this work comes after, and covers, needs no second look
            self.entries = [
                entry
                for entry in self.entries
                if not (start <= entry[0] and entry[1] <= end)
                or not (writes or (not entry[2] and entry[3] == stream.ptr))
            ]
            self.entries.append((start, end, writes, stream.ptr, tick, what))

    def _hurts(self, entry, start, end, writes, clock):
        other_start, other_end, other_writes, ptr, tick, _ = entry
        return (
            other_start < end
            and start < other_end
            and (writes or other_writes)
            and clock.get(ptr, 0) < tick
        )

    def forget(self, start, end):
        self.entries = [e for e in self.entries if not (e[0] < end and start < e[1])]


def _join(clock, other):
    for ptr, tick in other.items():
        if clock.get(ptr, 0) < tick:
            clock[ptr] = tick


def _entered():
    return getattr(_of_thread, "streams", [])


_numbers = itertools.count()
_of_thread = threading.local()
_LOG = _Log()
_streams: weakref.WeakSet = weakref.WeakSet()  # all but the default one
DEFAULT = Stream()
_streams.discard(DEFAULT)
