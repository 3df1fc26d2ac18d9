"""Memory over time as a picture: one offline HTML file, or a PNG, from a trace.

data = timeline("run.jsonl")        # plain data
html(data), png(data)               # bytes
"""

import functools
import importlib.resources
import json
import os

from .run import read_run
from .timeline_png import png

__all__ = ["MAX_STEPS", "html", "png", "timeline"]

VERSION = 1
# Moments in the picture; where there were more, each stands for several and shows the fullest of them.
MAX_STEPS = 4000
MAX_TAGS = 16
MAX_CALLS = 2000
MAX_LANES = 32  # calls at the same time, each in a lane of its own
MAX_REFUSED = 500
MAX_PEAK_BLOCKS = 2000
OTHER_TAGS = "(other tags)"
_PLACEHOLDER = '"@@DATA@@"'


def timeline(path):
    """What the pictures show.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    dict
        title, program, pid, started (seconds since 1970 or None), seconds, n_events, stopped, and pools: a list of

        pool, device, budget, arena, peak, peak_t, n_taken, n_refused
        tags
            Names, the ones with the most bytes first; "(other tags)" may be the last.
        t, i : list
            Of each step: seconds, and the number of the event.
        used : list of list of int
            Of each tag: bytes from each step to the next.
        events_per_step : int
        calls : list of dict
            name, lane, t, end (None: not ended), i, end_i, peak, planned, ok; n_calls counts those left out too.
        refused : list of dict
            t, i, size, tag.
        blocks_at_peak : list of dict
            offset, n_bytes, tag (an index), what.

    Raises
    ------
    OSError, TraceFormatError
    ValueError
        A snapshot, which has no history, instead of a trace.
    """
    # Twice over the file: which tags and how many events there are decides what is kept of them.
    first = read_run(path)
    if any(pool.from_snapshot for pool in first.pools.values()):
        raise ValueError(f"{path}: a snapshot; only a trace has a history to show")
    recorders = {number: _Recorder(pool) for number, pool in first.pools.items()}

    def record(run, event, pool, call):
        if pool is not None and pool.number in recorders:
            recorders[pool.number].add(event, pool, call, run.n_events)

    run = read_run(path, record)
    header, started = run.header, run.header.get("started")
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


def html(data):
    """`timeline`'s data as one HTML file that needs nothing else and asks no network.

    Returns
    -------
    bytes
    """
    return _template().replace(_PLACEHOLDER, _script_json(data)).encode()


@functools.cache
def _template():
    template = (
        importlib.resources.files("lowlevel.inspect").joinpath("timeline.html").read_text("utf-8")
    )
    assert template.count(_PLACEHOLDER) == 1
    return template


def _script_json(data):
    """JSON that cannot end the script element it stands in, whatever the trace's names say."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Recorder:
    """One pool's part of the picture."""

    def __init__(self, pool):
        names = sorted(pool.tags, key=lambda tag: (-pool.tags[tag].peak, tag))
        if len(names) > MAX_TAGS:
            names = [*names[: MAX_TAGS - 1], OTHER_TAGS]
        self.tags = names or [""]
        self._index_of = {tag: index for index, tag in enumerate(self.tags)}
        self._used = [0] * len(self.tags)
        self._total = 0
        self._steps = []  # [t, i, total, bytes by tag]
        self._stride = 1  # events that a step stands for
        self._n_in_step = 0
        self._calls = []
        self._n_calls = 0
        self._begin_i = {}  # call -> event number
        self._lanes = {}  # thread -> lane of each open call
        self._lane_of = {}
        self._refused = []

    def add(self, event, pool, call, i):
        op = event["op"]
        if op in ("alloc", "free", "resync", "attach", "detach"):
            for taken, block in pool.changes:
                n_bytes = block.n_bytes if taken else -block.n_bytes
                self._used[self._tag(block.tag)] += n_bytes
                self._total += n_bytes
            self._step(event["t"], i)
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
        calls = list(self._calls)
        for call in list(pool.open_calls.values())[:MAX_CALLS]:
            calls.append(self._call(call, None))
        blocks = pool.at_peak()
        blocks = sorted(blocks, key=lambda block: -block.n_bytes)[:MAX_PEAK_BLOCKS]
        return {
            "pool": pool.number,
            "device": pool.device,
            "budget": pool.budget,
            "arena": pool.arena_bytes,
            "peak": pool.peak,
            "peak_t": pool.peak_t,
            "n_taken": pool.n_taken,
            "n_refused": pool.n_refused,
            "tags": self.tags,
            "t": [step[0] for step in self._steps],
            "i": [step[1] for step in self._steps],
            "used": [list(used) for used in zip(*(step[3] for step in self._steps), strict=True)],
            "events_per_step": self._stride,
            "calls": sorted(calls, key=lambda call: call["t"]),
            "n_calls": self._n_calls + len(pool.open_calls),
            "refused": self._refused,
            "blocks_at_peak": [
                {
                    "offset": block.offset,
                    "n_bytes": block.n_bytes,
                    "tag": self._tag(block.tag),
                    "what": f"{block.dtype} ({', '.join(map(str, block.shape))}) {block.scope}"[
                        :200
                    ],
                }
                for block in blocks
                if block.n_bytes
            ],
        }

    def _tag(self, tag):
        return self._index_of.get(tag, len(self.tags) - 1)

    def _step(self, t, i):
        steps = self._steps
        t = max(t, steps[-1][0]) if steps else t
        if steps and self._n_in_step < self._stride:
            self._n_in_step += 1
            if self._total > steps[-1][2]:
                steps[-1][2:] = self._total, tuple(self._used)
            return
        steps.append([t, i, self._total, tuple(self._used)])
        self._n_in_step = 1
        if len(steps) > MAX_STEPS:
            self._steps = [_fuller(*steps[k : k + 2]) for k in range(0, len(steps), 2)]
            self._stride *= 2

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


def _fuller(first, second=None):
    """Two steps as one: from the first's time on, what the fuller one holds."""
    if second is None or first[2] >= second[2]:
        return first
    return [first[0], first[1], second[2], second[3]]
