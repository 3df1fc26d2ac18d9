"""What pools do over time, as lines of JSON in a file that can be read while it grows.

    with Trace("run.jsonl") as trace:
        trace.attach(pool)
        with pool.call("attention", n_kv=4096): ...
    for event in read_events("run.jsonl"): ...      # lowlevel.inspect.reader

File format, version 1 (as a JSON Schema: trace_schema.json): UTF-8, one JSON object a line, in the order of events. Readers skip keys
and "op"s that they do not know; a change that would mislead such readers raises the version.

First line (the header)
    {"format": "kqcap trace", "version": 1, "pid": 123, "program": "kqcap", "started": seconds since 1970}
Every other line has "t" (seconds since the trace began) and "op". Those about a pool, all but "stop", have "pool" (1, 2, ...
in the order of attaching) and "used" (bytes taken after the event). Sizes and offsets are bytes.
    "attach"      device, budget, peak, debug; an "alloc" for each block that is live by then follows
    "alloc"       n, offset, size, tag, scope, thread, dtype, shape, site ("" but in debug pools). n: the pool's n-th block
    "free"        n, offset, size, tag
    "refuse"      size, tag, error: BudgetError.to_dict()
    "reset_peak"
    "resync"      live: blocks as in Pool.snapshot(). After an interrupt: what is live now, whatever was said before
    "begin"       call, name, thread, details: a call, such as an attention; `call` joins it to its "end"
    "end"         call, name, thread, ok (false: left by an exception)
    "detach"      snapshot: Pool.snapshot(), with the blocks at the peak. Also when a pool is closed
    "stop"        n_events: lines between the header and this one, the last line of a trace that was ended properly

Recording puts an event in a queue; a thread formats and writes whole lines, at most about `LAG_SECONDS` later. A process that
is killed loses what happened in that time; half a line may then end the file, which readers skip.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import itertools
import json
import os
import queue
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowlevel.sure_exit import SureExit, id_of_handled
from lowlevel.sure_start import start_thread

from .block import Block

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .pool import Pool


FORMAT = "kqcap trace"
VERSION = 1
LAG_SECONDS = 0.05
# Events in the queue beyond which whoever adds one writes them all first.
MAX_PENDING = 100_000
LINES_PER_WRITE = 1000
MAX_ENCODED = 10_000
# Where the fields of a Block start that many blocks have in common.
SHARED_FIELDS = Block._fields.index("dtype")

_active: weakref.WeakSet[Trace] = weakref.WeakSet()


class Trace:
    """Writes events to a file. Use as a context manager, or call `stop`.

    Any number of pools and threads may record into one trace. A forked child records nothing.

    Parameters
    ----------
    path : str or os.PathLike
        A file to create; one that exists is replaced.

    Attributes
    ----------
    path : str

    Raises
    ------
    OSError
        The file cannot be created. (A write that fails later ends the recording, never the program; `stop`
        raises it.)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = open(self.path, "wb", buffering=0)
        self._events: collections.deque = collections.deque()
        self._start = time.perf_counter()
        self._call_ids = itertools.count(1)
        self._encoded: dict[Any, Any] = {}
        self._pool_ids = itertools.count(1)
        self._pools: list[Any] = []
        self._error = None
        self._stopped = False
        self._is_over = False
        self._write_lock = threading.Lock()
        # C's own: an Event that is interrupted stays locked.
        self._wake: queue.SimpleQueue = queue.SimpleQueue()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "pid": os.getpid(),
            "program": os.path.basename(sys.argv[0]) if sys.argv else "",
            "started": time.time(),
        }
        start = _encode(header).encode()
        self._file.write(start)
        self._batch = _Batch([], b"", len(start), 0, False)
        self._is_torn = False  # an interrupt has come while a batch was written
        _active.add(self)
        self._writer = threading.Thread(
            target=_write_until_stopped, args=(weakref.ref(self), self._wake), daemon=True
        )
        start_thread(self._writer)

    def attach(self, pool: Pool) -> None:
        """Record what `pool` does from now on. A pool is in one trace at a time.

        Raises
        ------
        ValueError
            The pool is closed or is traced already; the trace is stopped.
        """
        if self._stopped:
            raise ValueError(f"the trace {self.path} is stopped")
        recorder = PoolRecorder(self, next(self._pool_ids))
        self._pools.append((weakref.ref(pool), recorder))  # first: `stop` must know of it
        try:
            pool._start_trace(recorder)
        except BaseException:
            pool._stop_trace(recorder)
            raise

    def detach(self, pool: Pool) -> None:
        """Stop recording a pool; its snapshot goes into the file. One that is not recorded is left alone."""
        for known, recorder in self._pools:
            if known() is pool:
                pool._stop_trace(recorder)

    def flush(self) -> None:
        """Write all events so far."""
        with self._write_lock:
            self._write_all()

    def stop(self) -> None:
        """Detach every pool, write the rest and close the file. A second call does nothing."""
        if self._is_over:
            return
        for known, recorder in self._pools:
            pool = known()
            if pool is not None:
                pool._stop_trace(recorder)
        self._stopped = True
        self._wake.put(None)
        with self._write_lock:
            self._write_all()
            self._file.close()
        _active.discard(self)
        self._is_over = True
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Trace:
        return self

    __exit__ = SureExit()

    def _leave(self, error, again):
        self.stop()

    # ------------------------------------------------------------ recording

    def _append(self, event):
        self._events.append(event)
        if len(self._events) > MAX_PENDING:
            self.flush()

    # ------------------------------------------------------------ writing (under the write lock)

    def _write_all(self):
        """Every event once, also after an interrupt between any two steps: `_batch` says how far it has come."""
        while self._error is None and not self._is_over and not self._file.closed:
            if self._batch.data:
                self._write_batch()
            elif self._batch.is_last:
                return
            elif self._events:
                self._prepare([*itertools.islice(self._events, LINES_PER_WRITE)])
            elif self._stopped:
                fields = {"n_events": self._batch.n_events}
                self._prepare([(time.perf_counter(), "stop", None, fields, None)], is_last=True)
            else:
                return

    def _prepare(self, events, is_last=False):
        data = "".join(map(self._line, events)).encode()
        self._batch = _Batch(events, data, self._batch.start, self._batch.n_events, is_last)

    def _write_batch(self):
        events, data, start, n_events, is_last = self._batch
        for event in events:
            if self._events and self._events[0] is event:  # else it was removed before an interrupt
                self._events.popleft()
        try:
            rest = memoryview(data)[self._file.tell() - start if self._is_torn else 0 :]
            self._is_torn = True
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._fail(error)
            return
        self._batch = _Batch([], b"", start + len(data), n_events + len(events), is_last)
        self._is_torn = False

    def _line(self, event):
        seconds, op, pool, what, used = event
        seconds -= self._start
        if isinstance(what, dict):
            about = {} if pool is None else {"pool": pool, "used": used}
            line = {"t": round(seconds, 6), "op": op, **about, **what}
            try:
                return _encode(line)
            except (TypeError, ValueError, RuntimeError):
                # Details that JSON cannot say, or that change.
                return _encode({**line, "details": {"unwritable": repr(line["details"])[:1000]}})
        # A block: nearly every line, so put together by hand from parts that are mostly the same.
        offset, n_bytes, number, shape = what[:SHARED_FIELDS]
        is_alloc = op == "alloc"
        key = what[SHARED_FIELDS:] if is_alloc else what.tag
        rest = self._encoded.get(key)
        if rest is None:
            if len(self._encoded) > MAX_ENCODED:
                self._encoded.clear()
            rest = self._encoded[key] = _constant_part(op, what)
        if is_alloc:
            lengths = shape[0] if len(shape) == 1 else str(shape)[1:-1]
            rest = f'{rest},"shape":[{lengths}]'
        return (
            f'{{"t":{seconds:.6f},"op":"{op}","pool":{pool},"used":{used},"n":{number},'
            f'"offset":{offset},"size":{n_bytes},{rest}}}\n'
        )

    def _fail(self, error):
        """The disk is full or gone: the traced program goes on, untraced."""
        self._error = error
        self._events = collections.deque(maxlen=0)

    def _abandon(self):
        """In a forked child: the file belongs to the parent."""
        self._stopped = self._is_over = True
        self._events = collections.deque(maxlen=0)
        self._write_lock = threading.Lock()


class PoolRecorder:
    """What a pool calls while it is traced; every method with the pool's lock held, but for `call`."""

    def __init__(self, trace: Trace, pool_id: int) -> None:
        self._trace = trace
        self._id = pool_id

    def prepare(self, op: str, used: int, **fields: Any) -> Any:
        """An event as a call that is C's own: right after the change that it tells of, nothing comes in between."""
        event = (time.perf_counter(), op, self._id, fields, used)
        return functools.partial(self._trace._events.append, event)

    def prepare_attach(self, blocks: Sequence[Block], used: int, **fields: Any) -> Any:
        """The same for the start: "attach", and an "alloc" for each block."""
        now = time.perf_counter()
        events: list[tuple[float, str, int, Any, int]] = [(now, "attach", self._id, fields, used)]
        events += [(now, "alloc", self._id, block, used) for block in blocks]
        return functools.partial(self._trace._events.extend, events)

    def block(self, op: str, block: Block, used: int) -> None:
        self._trace._append((time.perf_counter(), op, self._id, block, used))

    def event(self, op: str, used: int, **fields: Any) -> None:
        self._trace._append((time.perf_counter(), op, self._id, fields, used))

    def call(self, pool: Pool, name: str, details: dict[str, Any]) -> Any:
        return _Call(self, pool, name, details, next(self._trace._call_ids))


class _Call:
    def __init__(self, recorder, pool, name, details, number):
        self._recorder = recorder
        self._pool = pool
        self._fields = {"call": number, "name": name, "thread": threading.current_thread().name}
        self._details = details
        self._is_open = False

    def __enter__(self):
        self._handled_outside = id_of_handled()
        begin = self._recorder.prepare(
            "begin", self._pool.used, **self._fields, details=self._details
        )
        try:
            self._is_open = True
            begin()
            return self
        except BaseException:
            self._end(False)
            raise

    __exit__ = SureExit()

    def _leave(self, error, again):
        self._end(id(error) == self._handled_outside)

    def _end(self, ok):
        if self._is_open:
            end = self._recorder.prepare("end", self._pool.used, **self._fields, ok=ok)
            self._is_open = False
            end()


class _Batch(NamedTuple):
    """Lines on their way into the file."""

    events: list
    data: bytes
    start: int  # where in the file they belong
    n_events: int  # those in the file before them
    is_last: bool


def _encode(line):
    return _dumps(line) + "\n"


def _dumps(value):
    return json.dumps(value, separators=(",", ":"), default=_plain, allow_nan=False)


def _plain(value):
    return value.item() if isinstance(value, np.generic) else str(value)


def _constant_part(op, block):
    """The part of a block's line from its tag on that many have in common, without the braces."""
    fields = {"tag": block.tag}
    if op == "alloc":
        fields.update(scope=block.scope, thread=block.thread, dtype=block.dtype.name)
        fields.update(site=block.site)
    return _dumps(fields)[1:-1]


def _write_until_stopped(trace_ref, wake):
    """The writer thread; it does not keep a forgotten trace alive."""
    while True:
        try:
            wake.get(timeout=LAG_SECONDS)
            return
        except queue.Empty:
            trace = trace_ref()
        if trace is None:
            return
        trace.flush()
        del trace


def _stop_all():
    for trace in list(_active):
        with contextlib.suppress(OSError):
            trace.stop()


def _abandon_all():
    for trace in list(_active):
        trace._abandon()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
