"""Whether calls take from their pool what they planned, to the byte: watched in every test (conftest.py)."""

import contextlib
import functools
import sys
import threading

import lowlevel
from lowlevel.pool import Pool
from lowlevel.pool.memory import ArenaMemory, GuardedMemory


class MeasuredCalls:
    """Watches all pools, while installed, for the calls that the library marks with its plan (`Pool.call`).

    A call's bytes are those of the blocks that its thread takes and gives back while it runs. Nothing gets past:
    an attention that ends without one such call is wrong, and so is a block that the library takes outside of
    them, in another thread or from another pool.

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
        self._n_attentions = {}  # thread -> how many it has ended
        self._open = {}  # thread -> its running calls
        self._calls_of = {}  # (memory, offset of a block) -> the calls that it counts for

    def install(self, monkeypatch):
        monkeypatch.setattr(lowlevel, "attention", self._marked(lowlevel.attention))
        monkeypatch.setattr(Pool, "call", _method(Pool.call, self.call))
        for kind in (ArenaMemory, GuardedMemory):
            monkeypatch.setattr(kind, "take", _method(kind.take, self.take))
            monkeypatch.setattr(kind, "give", _method(kind.give, self.give))

    def _marked(self, attention):
        @functools.wraps(attention)
        def marked(*args, **kwargs):
            thread = threading.get_ident()
            before = self._n_attentions.get(thread, 0)
            result = attention(*args, **kwargs)
            n = self._n_attentions.get(thread, 0) - before
            if n != 1:
                self.wrong.append(f"attention ran, and {n} calls of it were marked with a plan")
            return result

        return marked

    def call(self, original, pool, name, **details):
        inner = original(pool, name, **details)
        if "scratch_bytes" in details and _is_library(sys._getframe(2)):
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
        if name == "attention":
            self._n_attentions[threading.get_ident()] = (
                self._n_attentions.get(threading.get_ident(), 0) + 1
            )
        planned = details["scratch_bytes"]
        if call.peak != planned or call.used or pool.peak < min(before, pool.used) + planned:
            self.wrong.append(
                f"{name} {details} on {pool}: took {call.peak}, kept {call.used} bytes"
            )

    def take(self, original, memory, offset, n_bytes, shape, dtype):
        array = original(memory, offset, n_bytes, shape, dtype)
        calls = self._open.get(threading.get_ident(), ())
        calls = [call for call in calls if call.pool._memory is memory]
        if not calls and _is_library(sys._getframe(3)):  # who called Pool.empty
            self.wrong.append(f"{n_bytes} bytes were taken outside of the call that planned them")
        if n_bytes and calls:
            self._calls_of[id(memory), offset] = calls
            for call in calls:
                call.used += n_bytes
                call.peak = max(call.peak, call.used)
        return array

    def give(self, original, memory, array, block):
        for call in self._calls_of.pop((id(memory), block.offset), ()) if block.n_bytes else ():
            call.used -= block.n_bytes
        return original(memory, array, block)


class _Call:
    def __init__(self, pool):
        self.pool = pool
        self.used = self.peak = 0


# What takes for its caller to keep: `QuantTensor.to(device, pool=)`, and a model, all of whose memory is one sum
# (models/test_model.py).
_TAKE_TO_KEEP = ("quant.tensor", "quant.models.taken")


def _is_library(frame):
    name = frame.f_globals["__name__"]
    return name.startswith(("lowlevel.", "quant.")) and name not in _TAKE_TO_KEEP


def _method(original, watched):
    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return watched(original, self, *args, **kwargs)

    return method
