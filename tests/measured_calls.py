"""Whether calls take from their pool what they planned, to the byte: watched in every test (conftest.py)."""

import contextlib
import functools
import sys
import threading

from lowlevel.pool import Pool


class MeasuredCalls:
    """Watches all pools, while installed, for the calls that the library marks with its plan (`Pool.call`).

    A call's bytes are those of the blocks that its thread takes and gives back while it runs.

    Attributes
    ----------
    n_calls : int
        Whole calls so far.
    wrong : list of str
        Those that did not take what they had planned.
    """

    def __init__(self):
        self.n_calls = 0
        self.wrong = []
        self._open = {}  # thread -> its running calls
        self._calls_of = {}  # (pool, block number) -> the calls that it counts for

    def install(self, monkeypatch):
        for name in ("call", "empty", "_settle"):
            original, watched = getattr(Pool, name), getattr(self, name)
            monkeypatch.setattr(Pool, name, _method(original, watched))

    def call(self, original, pool, name, **details):
        inner = original(pool, name, **details)
        caller = sys._getframe(2).f_globals["__name__"]
        if "scratch_bytes" in details and caller.startswith(("lowlevel.", "quant.")):
            return self._measured(pool, name, details, inner)
        return inner

    @contextlib.contextmanager
    def _measured(self, pool, name, details, inner):
        call = _Call(pool)
        calls = self._open.setdefault(threading.get_ident(), [])
        calls.append(call)
        before = pool.used
        try:
            with inner:
                yield
        finally:
            calls.remove(call)
        self.n_calls += 1
        planned = details["scratch_bytes"]
        if call.peak != planned or call.used or pool.peak < min(before, pool.used) + planned:
            self.wrong.append(
                f"{name} {details} on {pool}: took {call.peak}, kept {call.used} bytes"
            )

    def empty(self, original, pool, *args, **kwargs):
        array = original(pool, *args, **kwargs)
        calls = [c for c in self._open.get(threading.get_ident(), ()) if c.pool is pool]
        if calls:
            block = pool._live[id(array)][1]
            self._calls_of[id(pool), block.number] = calls
            for call in calls:
                call.used += block.n_bytes
                call.peak = max(call.peak, call.used)
        return array

    def _settle(self, original, pool, entry):
        block = entry[1]
        for call in self._calls_of.pop((id(pool), block.number), ()):
            call.used -= block.n_bytes
        return original(pool, entry)


class _Call:
    def __init__(self, pool):
        self.pool = pool
        self.used = self.peak = 0


def _method(original, watched):
    @functools.wraps(original)
    def method(pool, *args, **kwargs):
        return watched(original, pool, *args, **kwargs)

    return method
