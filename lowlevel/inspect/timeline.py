"""Memory over time as a picture: one offline HTML file, or a PNG, from a trace.

data = timeline("run.jsonl")        # plain data
html(data), png(data)               # bytes
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .run import read_run
from .timeline_bands import FREED_LATER, Ages, Bands, Blocks
from .timeline_html import html
from .timeline_png import png

if TYPE_CHECKING:
    from typing import Any


__all__ = ["MAX_STEPS", "html", "png", "timeline"]

VERSION = 2
# Moments in the picture; where there were more, each stands for several and shows the fullest of them.
MAX_STEPS = 4000
# A tenth of them at most are moments at which nothing happened, for blocks grow older all the same.
TICK_SHARE = 0.1
MAX_CALLS = 2000
MAX_LANES = 32  # calls at the same time, each in a lane of its own
MAX_REFUSED = 500
MAX_LEFT = 100
_STEP_OPS = ("alloc", "free", "resync", "attach", "detach")


def timeline(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the pictures show.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    dict
        title, program, pid, started (seconds since 1970 or None), seconds, n_events, stopped, and pools: a list of

        pool, device, budget, arena, peak, peak_t, n_taken, n_refused
        t, i : list
            Of each step: seconds, and the number of the event.
        events_per_step : int
        bands : dict
            "tag", "scope" and "site" (where blocks have one), "left" (by tag what was never freed, where there is any) and
            "age": dicts of names, and used, a list of list of int: bytes of each name from each step to the next. Names with
            the most bytes come first, the last may be that of all others; ages begin with the oldest, and have `least`: from
            what age on (seconds; None: from before the recording).
        blocks : dict
            Columns: offset, n_bytes, first and after (the steps from and up to which it is live), t (None: before the
            recording), end (None: never freed), band (of each kind but "age": its place there), and tag, scope, site,
            thread and what as places in `texts`. n_left_out counts those that are not listed, the smallest; highest is the end
            of the highest block there ever was. Blocks without bytes are left out.
        left : dict
            n_blocks, n_bytes, and groups as `PoolState.left` returns them, n_groups counts those left out too.
        calls : list of dict
            name, lane, t, end (None: not ended), i, end_i, peak, planned, ok; n_calls counts those left out too.
        refused : list of dict
            t, i, size, tag.

    Raises
    ------
    OSError, TraceFormatError
    ValueError
        A snapshot, which has no history, instead of a trace.
    """
    # Twice over the file: which names and how many events there are decides what is kept of them.
    n_steps: dict[Any, Any] = {}

    def count(run, event, pool, call):
        if pool is not None and event["op"] in _STEP_OPS:
            n_steps[pool.number] = n_steps.get(pool.number, 0) + 1

    first = read_run(path, count)
    if any(pool.from_snapshot for pool in first.pools.values()):
        raise ValueError(f"{path}: a snapshot; only a trace has a history to show")
    n_ticks = round(TICK_SHARE * MAX_STEPS)
    recorders = {
        number: _Recorder(pool, first.t, -(-n_steps[number] // (MAX_STEPS - n_ticks)), n_ticks)
        for number, pool in first.pools.items()
    }

    def record(run, event, pool, call):
        if pool is not None and pool.number in recorders:
            recorders[pool.number].add(event, pool, call, run.n_events)

    run = read_run(path, record)
    header = run.header
    started: Any = header.get("started")
    return {
        "version": VERSION,
        "title": os.path.basename(os.fspath(path)),
        "program": str(header.get("program", ""))[:200],
        "pid": header.get("pid") if type(header.get("pid")) is int else None,
        "started": started if type(started) in (int, float) and 0 <= started < 1e11 else None,
        "seconds": run.t,
        "n_events": run.n_events,
        "stopped": run.stopped,
        "pools": [
            recorders[pool.number].data(pool)
            for pool in run.pools.values()
            if pool.number in recorders
        ],
    }


class _Recorder:
    """One pool's part of the picture.

    Parameters
    ----------
    pool : PoolState
        At the end of the trace.
    seconds : float
        How long the run took.
    events_per_step : int
    n_ticks : int
    """

    def __init__(self, pool, seconds, events_per_step, n_ticks):
        self._seconds = seconds
        self._tick = seconds / max(n_ticks, 1)
        self._n_ticks = n_ticks
        self._last = 0.0, 0  # the last event's time and number
        self._bands = _bands(pool, seconds)
        self._blocks = Blocks({*pool.at_peak(), *pool.live.values()})
        self._total = 0
        self._stride = events_per_step
        self._n_in_step = 0
        self._fullest = None  # of this step so far: event number, total
        self._steps = []  # [t, i, bytes of each of the bands]
        self._calls = []
        self._n_calls = 0
        self._begin_i = {}  # call -> event number
        self._lane_of = {}  # call -> lane, while it is open
        self._refused = []

    def add(self, event, pool, call, i):
        op = event["op"]
        if op in _STEP_OPS:
            self._step(event["t"], pool.changes, i)
        elif op == "refuse" and len(self._refused) < MAX_REFUSED:
            refused = {"t": event["t"], "i": i, "size": event["size"], "tag": event["tag"]}
            self._refused.append(refused)
        elif op == "begin":
            self._begin_i[event["call"]] = i
            self._lane_of[event["call"]] = self._free_lane()
        elif op == "end":
            self._n_calls += 1
            self._add_call(call, i)

    def data(self, pool):
        self._let_time_pass(self._seconds)
        self._close_step()
        calls = list(self._calls)
        for call in list(pool.open_calls.values())[:MAX_CALLS]:
            calls.append(self._call(call, None))
        left = pool.left()
        return {
            "pool": pool.number,
            "device": pool.device,
            "budget": pool.budget,
            "arena": pool.arena_bytes,
            "peak": pool.peak,
            "peak_t": pool.peak_t,
            "n_taken": pool.n_taken,
            "n_refused": pool.n_refused,
            "t": [step[0] for step in self._steps],
            "i": [step[1] for step in self._steps],
            "events_per_step": self._stride,
            "bands": {
                kind: self._band_data(bands, place)
                for place, (kind, bands) in enumerate(self._bands.items())
            },
            "blocks": self._blocks.data(len(self._steps), self._bands),
            "left": {
                "n_blocks": len(pool.live),
                "n_bytes": sum(group["n_bytes"] for group in left),
                "n_groups": len(left),
                "groups": left[:MAX_LEFT],
            },
            "calls": sorted(calls, key=lambda call: call["t"]),
            "n_calls": self._n_calls + len(pool.open_calls),
            "refused": self._refused,
        }

    def _band_data(self, bands, place):
        used = [list(used) for used in zip(*(step[2][place] for step in self._steps), strict=True)]
        data = {"names": bands.names, "used": used}
        return {**data, "least": bands.least} if isinstance(bands, Ages) else data

    def _step(self, t, changes, i):
        """An event that may change what is live."""
        self._let_time_pass(t)
        if self._n_in_step == self._stride:
            self._close_step()
        for taken, block in changes:
            if not block.n_bytes:
                continue
            if taken:
                self._blocks.take(block, i)
            else:
                self._blocks.give(block, i, t)
            n_bytes = block.n_bytes if taken else -block.n_bytes
            self._total += n_bytes
            for bands in self._bands.values():
                bands.add(block, n_bytes)
        self._last = max(t, self._last[0]), i
        self._show()

    def _show(self):
        """Have the step, a new one if need be, show what is live now, if it is the fullest so far."""
        t, i = self._last
        self._bands["age"].advance(t)
        if not self._n_in_step:
            self._steps.append([t, i, None])
        self._n_in_step += 1
        if self._fullest is None or self._total > self._fullest[1]:
            self._fullest = i, self._total
            self._steps[-1][2] = [tuple(bands.used) for bands in self._bands.values()]

    def _let_time_pass(self, t):
        """Steps at which nothing happens, up to the next event at `t`."""
        while self._steps and self._n_ticks and self._last[0] + self._tick < t:
            self._close_step()
            self._n_ticks -= 1
            self._last = self._last[0] + self._tick, self._last[1]
            self._show()
            self._close_step()

    def _close_step(self):
        if self._n_in_step:
            self._blocks.close(len(self._steps) - 1, self._fullest[0])
        self._n_in_step, self._fullest = 0, None

    def _free_lane(self):
        if len(self._lane_of) >= MAX_LANES:
            return MAX_LANES - 1
        taken = set(self._lane_of.values())
        return next(lane for lane in range(len(taken) + 1) if lane not in taken)

    def _add_call(self, call, i):
        self._calls.append(self._call(call, i))
        del self._lane_of[call.number], self._begin_i[call.number]
        if len(self._calls) > 2 * MAX_CALLS:  # the longest are what one sees
            self._calls.sort(key=lambda call: call["t"] - call["end"])
            del self._calls[MAX_CALLS:]

    def _call(self, call, i):
        return {
            "name": call.name,
            "lane": self._lane_of[call.number],
            "t": call.begin,
            "end": call.end,
            "i": self._begin_i[call.number],
            "end_i": i,
            "peak": call.peak,
            "planned": call.planned,
            "ok": call.ok,
            "thread": call.thread,
        }


def _bands(pool, seconds):
    """What the bytes of a pool are told apart by, given its state at the end."""
    bands = {"tag": Bands(_peaks(pool.tags), lambda block: block.tag, "tags")}
    if any(pool.scopes):
        bands["scope"] = Bands(_peaks(pool.scopes), lambda block: block.scope, "scopes")
    if any(pool.sites):
        bands["site"] = Bands(_peaks(pool.sites), lambda block: block.site, "lines")
    if pool.used:
        held = {tag: totals.used for tag, totals in pool.tags.items() if totals.used}

        def fate(block):
            return block.tag if pool.live.get(block.number) == block else FREED_LATER

        bands["left"] = Bands(held, fate, "tags", last=FREED_LATER)
    return {**bands, "age": Ages(seconds)}


def _peaks(all_totals):
    return {name: totals.peak for name, totals in all_totals.items()}
