"""Memory that several streams of a device use in turn: who must wait for whom before a block is used again.

Work on a stream runs in order, later than the program that queues it; work on two streams in no order at all.
So a block that is free by the books may still be at work in the stream that freed it. Here is the rule:

- a block belongs to the stream that is the thread's current one when it is taken, and is given back on the one that
  is current when it is freed; if that is another, it waits for what the first has queued by then
- whoever takes memory that was freed on another stream has its stream wait for the last free there

Streams wait, never the program. Work on a block in a third stream is its owner's to order. What a device brings for
this is in `lowlevel.devices`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from lowlevel.devices import StreamDevice


class StreamOrder:
    """The freed parts of one arena by the stream that freed them last.

    Neighbours that one stream freed are one part, and a stream has one event, after its last free: a program
    with one stream has one part, and waits for nothing.

    Parameters
    ----------
    device : object
        With streams; see `lowlevel.devices`.
    """

    def __init__(self, device: StreamDevice) -> None:
        self._device = device
        self._freed_on: dict[Any, Any] = {}  # ptr -> (stream, event after its last free)
        self._taken_on: dict[Any, Any] = {}  # offset of a taken block -> stream
        # Parts, by offset; they do not overlap.
        self._starts: list[Any] = []
        self._ends: list[Any] = []
        self._owners: list[Any] = []  # ptr of a stream

    def taken(self, offset: int, n_bytes: int) -> None:
        """Have the current stream wait for those that freed parts of a block that is being taken."""
        stream = self._device.current_stream()
        for owner in self._cut(offset, offset + n_bytes):
            if owner != stream.ptr:
                self._device.wait(stream, self._freed_on[owner][1])
        self._taken_on[offset] = stream

    def freed(self, offset: int, n_bytes: int) -> None:
        """Note that a taken block is given back on the current stream."""
        stream = self._device.current_stream()
        taken_on = self._taken_on.pop(offset)
        if taken_on.ptr != stream.ptr:
            self._device.wait(stream, self._device.record(taken_on))
        if stream.ptr not in self._freed_on:  # streams of which nothing is left are let go
            self._freed_on = {ptr: self._freed_on[ptr] for ptr in set(self._owners)}
        _, event = self._freed_on.get(stream.ptr, (stream, None))
        self._freed_on[stream.ptr] = stream, self._device.record(stream, event)
        self._add(offset, offset + n_bytes, stream.ptr)

    def reset(self, taken: Iterable[tuple[int, int]]) -> None:
        """Wait for the whole device and forget the past; the blocks at the offsets `taken` stay taken."""
        self._device.finish()
        del self._starts[:], self._ends[:], self._owners[:]
        self._taken_on = {offset: self._taken_on[offset] for offset in taken}

    def parts(self) -> Any:
        """(start, end, ptr of the stream that freed it last) of each part, by offset."""
        return list(zip(self._starts, self._ends, self._owners, strict=True))

    def _cut(self, start, end):
        """Leave out what lies from `start` to `end`; the streams that owned some of it."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        cut = [(self._starts[i], self._ends[i], self._owners[i]) for i in range(first, last)]
        rest = [(cut[0][0], start, cut[0][2])] if cut and cut[0][0] < start else []
        rest += [(end, cut[-1][1], cut[-1][2])] if cut and cut[-1][1] > end else []
        self._put(first, last, rest)
        return dict.fromkeys(owner for _, _, owner in cut)

    def _add(self, start, end, owner):
        """A part, joined to neighbours of the same owner."""
        first = last = bisect_left(self._starts, start)
        if first and (self._ends[first - 1], self._owners[first - 1]) == (start, owner):
            first -= 1
            start = self._starts[first]
        if last < len(self._starts) and (self._starts[last], self._owners[last]) == (end, owner):
            end = self._ends[last]
            last += 1
        self._put(first, last, [(start, end, owner)])

    def _put(self, first, last, parts):
        self._starts[first:last] = [start for start, _, _ in parts]
        self._ends[first:last] = [end for _, end, _ in parts]
        self._owners[first:last] = [owner for _, _, owner in parts]
