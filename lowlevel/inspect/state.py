"""One pool as its trace tells it: blocks, holders, peak and calls, one event at a time.

Nothing is believed: blocks that overlap or leave the arena, frees of what is not there and sums that do not add up
raise ValueError; `lowlevel.inspect.run` adds the file and the line.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

from lowlevel.pool.arena import ALIGNMENT, Arena
from lowlevel.pool.block import by_offset, holders

if TYPE_CHECKING:
    from typing import Any


# Of the refused requests and of the calls that missed their plan, this many are kept with all they say.
KEPT = 20
# Calls inside one another in one thread.
MAX_NESTED_CALLS = 100


class LiveBlock(NamedTuple):
    """A block as the trace tells it: the fields of `lowlevel.pool.block.Block`, and when it was taken: seconds, None where
    that is not known (before the recording; in a snapshot)."""

    offset: int
    n_bytes: int
    number: int
    shape: tuple
    dtype: str
    tag: str
    scope: str
    thread: str
    site: str
    t: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "shape": list(self.shape)}


@dataclasses.dataclass
class Call:
    """A call between its "begin" and "end".

    Attributes
    ----------
    number : int
    name, thread : str
    pool : int
    begin, end : float
        Seconds since the trace began; `end` is None while it runs.
    ok : bool or None
        None while it runs.
    details : dict
        What the caller said of it, such as "scratch_bytes".
    used, peak : int
        Bytes that its thread has taken in it: now, and at most.
    """

    number: int
    name: str
    thread: str
    pool: int
    begin: float
    details: dict
    end: float | None = None
    ok: bool | None = None
    used: int = 0
    peak: int = 0

    @property
    def planned(self) -> int | None:
        """Bytes that the caller's plan foresaw; None where it did not say."""
        planned = self.details.get("scratch_bytes")
        return planned if type(planned) is int else None

    @property
    def kept_plan(self) -> bool | None:
        """Whether a whole call took what was planned, to the byte; None where that cannot be said."""
        return None if self.planned is None or not self.ok else self.planned == self.peak

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kept_plan": self.kept_plan}


@dataclasses.dataclass
class CallTotals:
    """All calls of one name in one pool."""

    n: int = 0
    n_failed: int = 0
    seconds: float = 0.0
    peak: int = 0
    n_planned: int = 0
    n_off_plan: int = 0


@dataclasses.dataclass
class Totals:
    """Bytes and blocks of one tag, scope or site: now, at most, and in all."""

    used: int = 0
    peak: int = 0
    n_live: int = 0
    n_taken: int = 0
    taken: int = 0


class PoolState:
    """One pool.

    Attributes
    ----------
    number : int
        As in the file.
    device : str
    budget, used, peak : int
        Bytes; `peak` is the highest `used` in the file, whatever "reset_peak" says.
    peak_t : float or None
        When it was reached, seconds; None where that cannot be said: a snapshot has no times.
    earlier_peak : int
        The pool's own peak when its recording began.
    live : dict of int to LiveBlock
        By number.
    unlisted : int
        Bytes that were taken when the recording began, by blocks that are listed next. Above 0 only in a file that
        is not whole.
    tags, scopes, sites : dict of str to Totals
    calls : dict of str to CallTotals
    open_calls : dict of int to Call
    off_plan : list of Call
        The first calls that did not take what they had planned.
    n_taken, n_freed, n_refused : int
    refused : list of dict
        The first "refuse" events.
    changes : list of (bool, LiveBlock)
        What the last event did: blocks taken (True) and given back (False), in order.
    attached, from_snapshot : bool
    """

    def __init__(
        self,
        number: int,
        device: str,
        budget: int,
        used: int = 0,
        peak: int = 0,
        debug: bool = False,
        t: float = 0.0,
    ) -> None:
        self.number = number
        self.device = device
        self.budget = budget
        self.debug = debug
        self.arena_bytes = budget // ALIGNMENT * ALIGNMENT
        self.used = used
        self.peak = used
        self.peak_t: float | None = t
        self.earlier_peak = peak
        self.live: dict[Any, Any] = {}
        self.tags: dict[str, Any] = {}
        self.scopes: dict[str, Any] = {}
        self.sites: dict[str, Any] = {}
        self.calls: dict[Any, Any] = {}
        self.open_calls: dict[Any, Any] = {}
        self.off_plan: list[Any] = []
        self.n_taken = self.n_freed = self.n_refused = 0
        self.refused: list[Any] = []
        self.changes: list[Any] = []
        self.attached = True
        self.from_snapshot = False
        self.unlisted = used
        self._offsets: list[Any] = []  # of live blocks with bytes, sorted
        self._end_of: dict[Any, Any] = {}  # offset -> end
        self._calls_of: dict[Any, Any] = {}  # block number -> calls it was taken in
        self._calls_in: dict[Any, Any] = {}  # thread -> its open calls
        # Numbers may be used again after an interrupt ("resync"): blocks are ordered by when they were seen.
        self._n_seen = 0
        self._seen_at: dict[
            Any, Any
        ] = {}  # block number -> the how-manieth block of the file it was
        self._n_seen_at_peak = 0
        self._freed_since_peak: list[Any] = []

    @classmethod
    def of_snapshot(cls, snapshot: dict[str, Any]) -> PoolState:
        """The state that a `Pool.snapshot()` describes; ValueError if its parts contradict each other."""
        pool = cls(1, snapshot["device"], snapshot["budget"])
        pool.from_snapshot = True
        pool.peak_t = None
        at_peak = [live_block(block, None) for block in snapshot["at_peak"]["live"]]
        for block in at_peak:
            pool._add(block)
        peak = snapshot["peak"]
        if pool.used > peak or snapshot["at_peak"]["used"] != peak:
            raise ValueError(
                f"the blocks at the peak hold {pool.used} bytes; the peak is {peak}, there "
                f"{snapshot['at_peak']['used']}"
            )
        pool._n_seen_at_peak = pool._n_seen
        for block in at_peak:
            pool._remove(block)
        for block in snapshot["live"]:
            pool._add(live_block(block, None))
        if pool.used != snapshot["used"] or pool.used > peak:
            raise ValueError(
                f"the live blocks hold {pool.used} bytes, used are {snapshot['used']}, the peak is {peak}"
            )
        pool.peak = pool.earlier_peak = peak
        pool.changes = []
        return pool

    def at_peak(self) -> list[LiveBlock]:
        """The blocks that made the peak, by offset."""
        seen_at, last = self._seen_at, self._n_seen_at_peak
        blocks = [block for block in self.live.values() if seen_at[block.number] <= last]
        return by_offset(blocks + self._freed_since_peak)

    def blocks(self) -> list[LiveBlock]:
        """The live blocks, by offset."""
        return by_offset(self.live.values())

    def left(self) -> list[dict[str, Any]]:
        """What is live: at the end of a trace, what was never freed.

        Returns
        -------
        list of dict
            tag, scope, site, n_bytes, n_blocks and since (of the oldest: seconds, None where it is not known) of the blocks
            that have the first three in common; most bytes first.
        """
        groups: dict[Any, Any] = {}
        for block in self.live.values():
            key = block.tag, block.scope, block.site
            group = groups.setdefault(key, {"n_bytes": 0, "n_blocks": 0, "since": block.t})
            group["n_bytes"] += block.n_bytes
            group["n_blocks"] += 1
            known = None not in (block.t, group["since"])
            group["since"] = min(block.t, group["since"]) if known else None
        names = ("tag", "scope", "site")
        left = [{**dict(zip(names, key, strict=True)), **group} for key, group in groups.items()]
        return sorted(left, key=lambda group: (-group["n_bytes"], *(group[name] for name in names)))

    @property
    def largest_free(self) -> int:
        return self._arena(self.live.values()).largest_free

    @property
    def fragmentation(self) -> float:
        """Share of the free bytes outside the largest free block, 0 to 1."""
        return _fragmentation(self._arena(self.live.values()))

    @property
    def peak_fragmentation(self) -> float:
        return _fragmentation(self._arena(self.at_peak()))

    def to_dict(self) -> dict[str, Any]:
        """The totals as plain data (JSON)."""
        at_peak = self.at_peak()
        return {
            "pool": self.number,
            "device": self.device,
            "debug": self.debug,
            "budget": self.budget,
            "used": self.used,
            "peak": self.peak,
            "peak_t": self.peak_t,
            "earlier_peak": self.earlier_peak,
            "largest_free": self.largest_free,
            "fragmentation": self.fragmentation,
            "peak_fragmentation": self.peak_fragmentation,
            "n_taken": self.n_taken,
            "n_freed": self.n_freed,
            "n_live": len(self.live),
            "n_refused": self.n_refused,
            "attached": self.attached,
            "holders": holders(self.live.values()),
            "holders_at_peak": holders(at_peak),
            "left": self.left(),
            "tags": _by_peak(self.tags),
            "scopes": _by_peak(self.scopes),
            "sites": _by_peak(self.sites),
            "calls": {name: dataclasses.asdict(totals) for name, totals in self.calls.items()},
            "open_calls": [call.to_dict() for call in self.open_calls.values()],
            "off_plan": [call.to_dict() for call in self.off_plan],
            "refused": self.refused,
        }

    # ------------------------------------------------------------ events

    def alloc(self, event: dict[str, Any]) -> None:
        listed = self.unlisted > 0  # live since before the recording, and counted in `used` already
        block = LiveBlock(
            event["offset"],
            event["size"],
            event["n"],
            tuple(event["shape"]),
            event["dtype"],
            event["tag"],
            event["scope"],
            event["thread"],
            event["site"],
            None if listed else event["t"],
        )
        if listed:
            self.unlisted -= block.n_bytes
            self.used -= block.n_bytes
            if self.unlisted < 0:
                raise ValueError(f"the blocks held from before exceed {event['used']} bytes")
        self._add(block)
        self._check_used(event)
        self.n_taken += not listed
        if listed:
            self._n_seen_at_peak = self._n_seen
        elif self.used > self.peak:
            self._mark_peak(event)
        calls = self._calls_in.get(block.thread)
        if calls:
            self._calls_of[block.number] = tuple(calls)
            for call in calls:
                call.used += block.n_bytes
                call.peak = max(call.peak, call.used)

    def free(self, event: dict[str, Any]) -> None:
        block = self.live.get(event["n"])
        if block is None or (block.offset, block.n_bytes) != (event["offset"], event["size"]):
            raise ValueError(f"block {event['n']} of {event['size']} bytes is freed but not live")
        self._remove(block)
        self.n_freed += 1
        self._check_used(event)

    def refuse(self, event: dict[str, Any]) -> None:
        self.n_refused += 1
        if len(self.refused) < KEPT:
            self.refused.append({key: event[key] for key in ("t", "size", "tag", "used")})

    def reset_peak(self, event: Any) -> None:
        self._check_used(event)

    def resync(self, event: dict[str, Any]) -> None:
        """What is live now, whatever was said before."""
        now = {block["number"]: block for block in event["live"]}
        if len(now) != len(event["live"]):
            raise ValueError("a block is listed twice")
        for block in list(self.live.values()):
            known = now.get(block.number)
            if known and (known["offset"], known["n_bytes"]) == (block.offset, block.n_bytes):
                del now[block.number]
            else:
                self._remove(block)
                self.n_freed += 1
        for block in now.values():
            self._add(live_block(block, event["t"]))
            self.n_taken += 1
        self.unlisted = 0
        self._check_used(event)
        if self.used > self.peak:
            self._mark_peak(event)

    def begin(self, event: dict[str, Any]) -> None:
        number, thread = event["call"], event["thread"]
        if number in self.open_calls:
            raise ValueError(f"call {number} begins twice")
        nested = self._calls_in.setdefault(thread, [])
        if len(nested) >= MAX_NESTED_CALLS:
            raise ValueError(f"over {MAX_NESTED_CALLS} calls inside one another in {thread!r:.100}")
        call = Call(number, event["name"], thread, self.number, event["t"], event["details"])
        self.open_calls[number] = call
        nested.append(call)

    def end(self, event: dict[str, Any]) -> Call:
        """The `Call` that ended."""
        call = self.open_calls.pop(event["call"], None)
        if call is None or call.name != event["name"]:
            raise ValueError(f"call {event['call']} ends but did not begin")
        nested = self._calls_in[call.thread]
        nested[:] = [other for other in nested if other is not call]
        if not nested:
            del self._calls_in[call.thread]
        call.end, call.ok = max(event["t"], call.begin), event["ok"]
        totals = self.calls.setdefault(call.name, CallTotals())
        totals.n += 1
        totals.n_failed += not call.ok
        totals.seconds += call.end - call.begin
        totals.peak = max(totals.peak, call.peak)
        totals.n_planned += call.kept_plan is not None
        if call.kept_plan is False:
            totals.n_off_plan += 1
            if len(self.off_plan) < KEPT:
                self.off_plan.append(call)
        return call

    def detach(self, event: dict[str, Any]) -> None:
        self.attached = False

    # ------------------------------------------------------------ blocks

    def _add(self, block):
        if block.number in self.live:
            raise ValueError(f"block {block.number} is taken twice")
        if block.n_bytes:
            self._place(block)
        self.live[block.number] = block
        self.changes.append((True, block))
        self._n_seen += 1
        self._seen_at[block.number] = self._n_seen
        self.used += block.n_bytes
        n_bytes = block.n_bytes
        for all_totals, name in self._totals_of(block):
            totals = all_totals.get(name)
            if totals is None:
                totals = all_totals[name] = Totals()
            totals.used += n_bytes
            if totals.used > totals.peak:
                totals.peak = totals.used
            totals.n_live += 1
            totals.n_taken += 1
            totals.taken += n_bytes

    def _totals_of(self, block):
        return (self.tags, block.tag), (self.scopes, block.scope), (self.sites, block.site)

    def _place(self, block):
        end = block.offset + block.n_bytes
        index = bisect_left(self._offsets, block.offset)
        before = self._offsets[index - 1] if index else None
        after = self._offsets[index] if index < len(self._offsets) else self.arena_bytes
        if end > after or (before is not None and self._end_of[before] > block.offset):
            raise ValueError(
                f"block {block.number}, {block.n_bytes} bytes at {block.offset}, overlaps another or "
                f"leaves the arena of {self.arena_bytes} bytes"
            )
        insort(self._offsets, block.offset)
        self._end_of[block.offset] = end

    def _remove(self, block):
        del self.live[block.number]
        self.changes.append((False, block))
        if block.n_bytes:
            del self._offsets[bisect_left(self._offsets, block.offset)]
            del self._end_of[block.offset]
        self.used -= block.n_bytes
        for all_totals, name in self._totals_of(block):
            totals = all_totals[name]
            totals.used -= block.n_bytes
            totals.n_live -= 1
        if self._seen_at.pop(block.number) <= self._n_seen_at_peak:
            self._freed_since_peak.append(block)
        for call in self._calls_of.pop(block.number, ()):
            call.used -= block.n_bytes

    def _mark_peak(self, event):
        self.peak, self.peak_t = self.used, event["t"]
        self._n_seen_at_peak = self._n_seen
        self._freed_since_peak = []

    def _check_used(self, event):
        if self.used != event["used"]:
            raise ValueError(f"{event['used']} bytes used, but the blocks hold {self.used}")

    def _arena(self, blocks):
        return Arena(self.arena_bytes, [(block.offset, block.n_bytes) for block in blocks])


def _by_peak(all_totals):
    order = sorted(all_totals.items(), key=lambda item: (-item[1].peak, item[0]))
    return {name: dataclasses.asdict(totals) for name, totals in order}


def live_block(block: dict[str, Any], t: float | None) -> LiveBlock:
    fields = {name: block[name] for name in LiveBlock._fields if name != "t"}
    return LiveBlock(**{**fields, "shape": tuple(fields["shape"])}, t=t)


def _fragmentation(arena):
    free = arena.size - arena.used
    return 1 - arena.largest_free / free if free else 0.0
