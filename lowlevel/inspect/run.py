"""What a trace's events add up to: the state of each pool and its calls.

    run = read_run("run.jsonl")               # to the end of the file, or a snapshot
    for pool in run.pools.values():
        pool.used, pool.peak, pool.at_peak(), pool.to_dict()

Files that contradict themselves raise TraceFormatError with the line.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .reader import EventFile, TraceFormatError, damaged, is_trace, no_trace, read_snapshot
from .state import PoolState

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any


@dataclasses.dataclass
class Level:
    """Bytes now, and at most."""

    used: int = 0
    peak: int = 0

    def add(self, n_bytes: int) -> None:
        self.used += n_bytes
        self.peak = max(self.peak, self.used)


class Run:
    """All pools of a trace.

    Attributes
    ----------
    header : dict
    pools : dict of int to PoolState
        In the order of attaching.
    devices : dict of str to Level
        All pools of a device together.
    t : float
        Of the last event, seconds.
    n_events : int
    stopped : bool
        The trace was ended properly.
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.pools: dict[Any, Any] = {}
        self.devices: dict[Any, Any] = {}
        self.t = 0.0
        self.n_events = 0
        self.stopped = False

    def apply(self, event: dict[str, Any]) -> tuple[Any, ...]:
        """Take one event of a trace into account.

        Returns
        -------
        tuple of (PoolState or None, Call or None)
            The pool it is about; the call that it ends.

        Raises
        ------
        ValueError
            It contradicts those before.
        """
        op = event["op"]
        self.n_events += 1
        self.t = max(self.t, event["t"])
        if op == "stop":
            self.stopped = True
            return None, None
        if op == "attach":
            return self._attach(event), None
        pool = self.pools.get(event["pool"])
        if pool is None or not pool.attached:
            raise ValueError(f"pool {event['pool']} is not attached")
        if pool.unlisted and op not in ("alloc", "resync"):
            raise ValueError(
                f"{pool.unlisted} bytes were taken before, by blocks that are not listed"
            )
        before = pool.used
        pool.changes = []
        call = getattr(pool, op)(event)
        self.devices[pool.device].add(pool.used - before)
        return pool, call

    def _attach(self, event):
        if event["pool"] in self.pools:
            raise ValueError(f"pool {event['pool']} is attached twice")
        pool = PoolState(
            event["pool"],
            event["device"],
            event["budget"],
            event["used"],
            event["peak"],
            event.get("debug") is True,
            event["t"],
        )
        if pool.used > pool.arena_bytes:
            raise ValueError(f"{pool.used} bytes used of a budget of {pool.budget}")
        self.pools[pool.number] = pool
        self.devices.setdefault(pool.device, Level()).add(pool.used)
        return pool


class LiveRun(Run):
    """The state of a trace that another process is still writing. A context manager.

    Parameters
    ----------
    path : str or os.PathLike
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._file = EventFile(path)

    def update(self) -> bool:
        """Take in what was written since the last time; True if that was anything."""
        before = self.n_events
        for number, event in self._file.new_events():
            apply_at(self, self._file.path, number, event)
        self.header = self._file.header or {}
        return self.n_events > before

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()


def read_run(
    path: str | os.PathLike[str],
    on_event: Callable[..., Any] | None = None,
    until: float | None = None,
) -> Run:
    """A trace, or a snapshot in a JSON file, as a `Run`.

    Parameters
    ----------
    path : str or os.PathLike
    on_event : callable, optional
        Called with (run, event, pool or None, ended call or None) after each event of a trace.
    until : float, optional
        Leave out what happened later: seconds since the trace began.

    Raises
    ------
    OSError, TraceFormatError
    """
    run = Run()
    if not is_trace(path):
        try:
            pool = PoolState.of_snapshot(read_snapshot(path))
        except TraceFormatError:
            raise
        except ValueError as error:
            raise TraceFormatError(f"{path}: {error}") from None
        run.pools[pool.number] = pool
        run.devices[pool.device] = Level(pool.used, pool.peak)
        return run
    with EventFile(path) as file:
        for number, event in file.new_events():
            run.header = file.header
            if until is not None and event["t"] > until:
                break
            pool, call = apply_at(run, path, number, event)
            if on_event is not None:
                on_event(run, event, pool, call)
        run.header = file.header
        if run.header is None:
            raise no_trace(path)
    return run


def apply_at(
    run: Run, path: str | os.PathLike[str], number: int, event: dict[str, Any]
) -> tuple[Any, ...]:
    """`run.apply`, its complaint with the file and the line."""
    try:
        return run.apply(event)
    except ValueError as error:
        raise damaged(path, number, str(error)) from None
