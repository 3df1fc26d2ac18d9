"""Ranks that are devices of one process: copies between them, in the order of their streams, or NCCL.

Every call is a meeting of the ranks' threads: they tell one another their arrays and a moment of their streams. Each
then queues its own part, behind the others' moments.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lowlevel import devices

from .comm import Comm, RankError
from .plan import COPIES, NCCL, Outline
from .threads import Meeting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.shapes import Array

    from .plan import CommPlan


def local_group(device_names: Sequence[str], *, nccl: bool = False) -> list[Comm]:
    """A group of devices of this process.

    Parameters
    ----------
    device_names : sequence of str
        One a rank: ("cuda:0", "cuda:1"). One may be named again, but for NCCL.
    nccl : bool
        Sums by NCCL, not by copies and additions: of "cuda:N" alone, through CuPy.

    Returns
    -------
    list of Comm
        Each is used by a thread of its own, in which all calls of that rank are made: see `RankThreads`.

    Raises
    ------
    TypeError, ValueError, ImportError
        Names that are none, devices that have no memory in common, NCCL where there is none.
    """
    if isinstance(device_names, str) or not device_names:
        raise TypeError(
            f'devices: expected names such as ["cuda:0", "cuda:1"], got {device_names!r}'
        )
    found = [devices.get(name) for name in device_names]
    kinds = {device.name.partition(":")[0] for device in found}
    if len(kinds) > 1:
        raise ValueError(
            f"devices: expected all of one kind, got {', '.join(device.name for device in found)}"
        )
    group = _Group(len(found))
    if nccl:
        from .nccl import communicators

        group.nccl = communicators([device.name for device in found])
    for device in found:
        for peer in found:
            if peer is not device:
                device.reach(peer)
    engine = NCCL if nccl else COPIES
    return [
        LocalComm(device.name, Outline(engine, len(found), rank), group)
        for rank, device in enumerate(found)
    ]


class _Group:
    """What all ranks have in common."""

    def __init__(self, size: int) -> None:
        self.meeting = Meeting(size)
        self.mail: dict[tuple[int, int], Any] = {}
        self.came = threading.Condition()
        self.nccl: list[Any] | None = None


class _Arrival(NamedTuple):
    """What a rank tells the others: what it is about, its array, a moment of its stream, the stream."""

    what: tuple[Any, ...]
    array: Any
    moment: Any
    stream: Any


class LocalComm(Comm):
    """A device among those of one process; see `local_group`."""

    def __init__(self, device: str, outline: Outline, group: _Group) -> None:
        super().__init__(device, outline)
        self._group = group

    @property
    def meeting(self) -> Meeting:
        """Where the ranks' threads wait for one another."""
        return self._group.meeting

    def share(self, value: Any) -> list[Any]:
        return self._group.meeting.exchange(self.rank, value)

    def fail(self, error: BaseException) -> None:
        self._group.meeting.fail(self.rank, error)

    def _stream(self):
        if not self._device.has_streams:
            return None
        return cast("devices.StreamDevice", self._device).current_stream()

    def _arrival(self, what, array):
        stream = self._stream()
        moment = None
        if stream is not None:
            moment = cast("devices.StreamDevice", self._device).record(stream)
        return _Arrival(what, array, moment, stream)

    def _meet(self, what: tuple[Any, ...], array: Array) -> list[_Arrival]:
        """All ranks' arrivals, which are of one call and size."""
        found: list[_Arrival] = self.share(self._arrival(what, array))
        self._refuse_other(what, [each.what for each in found])
        return found

    def _come_after(self, arrival: _Arrival) -> None:
        """Later work of this rank comes after the other's moment."""
        if arrival.moment is not None:
            device = cast("devices.StreamDevice", self._device)
            device.wait(device.current_stream(), arrival.moment)

    def _scatter(self, flat: Array, own: Sequence[slice], parts: Array) -> None:
        mine = own[self.rank]
        others = self._meet(("all_reduce", flat.size, flat.dtype.name), flat)
        del others[self.rank : self.rank + 1]
        for other, part in zip(others, parts, strict=True):
            if mine.stop > mine.start:
                self._come_after(other)
                self._device.receive(part[: mine.stop - mine.start], other.array[mine])

    def _collect(self, flat: Array, own: Sequence[slice]) -> None:
        found = self._meet(("collect", flat.size, flat.dtype.name, str(own)), flat)
        for rank, (other, items) in enumerate(zip(found, own, strict=True)):
            if rank != self.rank and items.stop > items.start:
                self._come_after(other)
                self._device.receive(flat[items], other.array[items])
        # What a rank does next to its array comes after all have read it.
        for rank, other in enumerate(self._meet(("collected",), flat)):
            if rank != self.rank:
                self._come_after(other)

    def _sum(self, flat: Array, plan: CommPlan) -> None:
        from .nccl import all_reduce

        found = self._meet(("all_reduce", flat.size, flat.dtype.name), flat)
        if self.rank == 0:
            arrays, streams = [each.array for each in found], [each.stream for each in found]
            all_reduce(self._group.nccl, arrays, streams)
        self.share(None)  # it is queued on every rank's own stream

    def _send(self, flat: Array, to: int) -> None:
        what = flat.size, flat.dtype.name
        self._post(to, self._arrival(what, flat))
        self._come_after(self._fetch(to))

    def _receive(self, flat: Array, source: int) -> None:
        given: _Arrival = self._fetch(source)
        what = flat.size, flat.dtype.name
        if given.what == what:
            self._come_after(given)
            self._device.receive(flat, given.array)
        self._post(source, self._arrival(what, flat))
        if given.what != what:
            raise RankError(source, f"out: it sends {given.what}, out has room for {what}")

    def _post(self, to, value):
        group = self._group
        with group.came:
            group.mail.setdefault((self.rank, to), []).append(value)
            group.came.notify_all()

    def _fetch(self, source):
        group, key = self._group, (source, self.rank)
        with group.came:
            while not group.mail.get(key):
                group.meeting.refuse()
                group.came.wait(timeout=0.1)
            return group.mail[key].pop(0)
