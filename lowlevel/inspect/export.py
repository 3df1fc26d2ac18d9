"""Traces in the formats of other tools: PyTorch's memory snapshot (pytorch.org/memory_viz) and RMM's CSV log."""

from __future__ import annotations

import csv
import io
import pickle
from typing import TYPE_CHECKING

from .run import read_run

if TYPE_CHECKING:
    import os
    from typing import Any


FORMATS = ("torch", "rmm")
# Pools get addresses of their own, so that one pool's block is never taken for another's.
FIRST_ADDRESS = 2**32
# memory_viz reads no other: its own unpickler knows protocols 2 to 4.
PICKLE_PROTOCOL = 4
RMM_COLUMNS = ("Thread", "Time", "Action", "Pointer", "Size", "Stream")
_LATEST = 253402300799.0  # year 9999


def export(path: str | os.PathLike[str], format: str) -> bytes:
    """A trace file as another tool's file.

    Parameters
    ----------
    path : str or os.PathLike
    format : {"torch", "rmm"}

    Returns
    -------
    bytes

    Raises
    ------
    OSError, TraceFormatError
    ValueError
        No such format; a snapshot, which has no history, for "rmm".
    """
    data = contents(path, format)
    if format == "torch":
        return pickle.dumps(data, protocol=PICKLE_PROTOCOL)
    text = io.StringIO()
    writer = csv.DictWriter(text, RMM_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(data)
    return text.getvalue().encode()


def contents(path: str | os.PathLike[str], format: str) -> Any:
    """What `export` writes, as plain data: `torch_snapshot`'s dict or `rmm_log`'s rows.

    Raises
    ------
    As `export`.
    """
    if format not in FORMATS:
        raise ValueError(f"format: one of {', '.join(FORMATS)}; got {format!r}")
    return torch_snapshot(path) if format == "torch" else rmm_log(path)


def torch_snapshot(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """A trace, or a snapshot, as the dict that torch.cuda.memory._snapshot() returns.

    Each pool is a device of its own with one segment, the arena; a block's "frames" are its site, scope and
    tag, its "category" the tag, which the viewer colours by. Blocks without bytes are left out.
    """
    traces = _Addresses()

    def record(run, event, pool, call):
        if pool is None:
            return
        trace = traces.entries(pool)
        for entry in _torch_entries(event, pool, traces.address(pool)):
            trace.append({"stream": 0, "time_us": _micros(run, event["t"]), **entry})

    run = read_run(path, record)
    segments = [
        _torch_segment(index, pool, traces.address(pool))
        for index, pool in enumerate(run.pools.values())
    ]
    device_traces = [traces.entries(pool) for pool in run.pools.values()]
    if device_traces:
        # the viewer trips over categories none of which is called "unknown"
        entry = {"action": "snapshot", "addr": 0, "size": 0, "stream": 0, "frames": []}
        entry.update(category="unknown", time_us=_micros(run, run.t))
        device_traces[0].append(entry)
    return {"segments": segments, "device_traces": device_traces}


def rmm_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A trace as the rows of the CSV that RMM's logging_resource_adaptor writes: one for each allocation and release.

    Threads are numbers in the order of their appearance (0: not known), times are UTC, the stream is 0;
    blocks without bytes are left out, and refused requests, at which RMM's own replay benchmark would stop.

    Returns
    -------
    list of dict
        `RMM_COLUMNS` of each row.
    """
    rows = []
    addresses = _Addresses()
    threads = {"": 0}

    def record(run, event, pool, call):
        if pool is None:
            return
        time = _time_of_day(_micros(run, event["t"]))
        base = addresses.address(pool)
        for taken, block in pool.changes:
            if not block.n_bytes:
                continue
            thread = threads.setdefault(block.thread, len(threads))
            action = "allocate" if taken else "free"
            values = (thread, time, action, hex(base + block.offset), block.n_bytes, 0)
            rows.append(dict(zip(RMM_COLUMNS, values, strict=True)))

    run = read_run(path, record)
    if any(pool.from_snapshot for pool in run.pools.values()):
        raise ValueError(f"{path}: a snapshot; RMM's log needs a trace")
    return rows


class _Addresses:
    """Where each pool's arena shall have been, and what happened in it."""

    def __init__(self):
        self._next = FIRST_ADDRESS
        self._address_of = {}
        self._entries_of = {}

    def address(self, pool):
        if pool.number not in self._address_of:
            self._address_of[pool.number] = self._next
            self._next += (pool.arena_bytes // FIRST_ADDRESS + 2) * FIRST_ADDRESS
        return self._address_of[pool.number]

    def entries(self, pool):
        return self._entries_of.setdefault(pool.number, [])


def _torch_entries(event, pool, address):
    if event["op"] == "attach":
        yield {"action": "segment_alloc", "addr": address, "size": pool.arena_bytes, "frames": []}
    if event["op"] == "refuse":
        free = pool.arena_bytes - pool.used
        frames = [_frame(event["tag"], "tag")]
        yield {"action": "oom", "size": event["size"], "device_free": free, "frames": frames}
    for taken, block in pool.changes:
        if not block.n_bytes:
            continue
        fields = {"addr": address + block.offset, "size": block.n_bytes}
        fields.update(frames=_frames(block), category=block.tag)
        if taken:
            yield {"action": "alloc", **fields}
        else:  # requested and done at once
            yield {"action": "free_requested", **fields}
            yield {"action": "free_completed", **fields}


def _torch_segment(index, pool, address):
    blocks, edge = [], 0
    for block in pool.blocks():
        if not block.n_bytes:
            continue
        if block.offset > edge:
            blocks.append(_torch_block(address + edge, block.offset - edge, "inactive", []))
        blocks.append(
            _torch_block(address + block.offset, block.n_bytes, "active_allocated", _frames(block))
        )
        edge = block.offset + block.n_bytes
    if edge < pool.arena_bytes:
        blocks.append(_torch_block(address + edge, pool.arena_bytes - edge, "inactive", []))
    return {
        "device": index,
        "address": address,
        "total_size": pool.arena_bytes,
        "allocated_size": pool.used,
        "active_size": pool.used,
        "requested_size": pool.used,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def _torch_block(address, n_bytes, state, frames):
    return {
        "address": address,
        "size": n_bytes,
        "requested_size": n_bytes,
        "state": state,
        "frames": frames,
    }


def _frames(block):
    """A block's story as stack frames, innermost first: that is what the viewer shows of it."""
    shape = " x ".join(map(str, block.shape)) or "scalar"
    frames = [_frame(f"{block.tag} ({block.dtype} {shape})", "tag")]
    frames += [_frame(scope, "scope") for scope in reversed(block.scope.split("/")) if scope]
    frames += [_frame(site, "site") for site in block.site.split(" < ") if site]
    return frames + [_frame(block.thread, "thread")]


def _frame(name, kind):
    return {"name": name, "filename": kind, "line": 0}


def _micros(run, t):
    """Microseconds since 1970 of a moment in the trace, as far as its header can be believed."""
    started = run.header.get("started")
    if type(started) not in (int, float) or not 0 <= started <= _LATEST:
        started = 0
    return round(min(started + t, _LATEST) * 1e6)


def _time_of_day(micros):
    seconds, micros = divmod(micros, 10**6)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours % 24:02d}:{minutes:02d}:{seconds:02d}.{micros:06d}"
