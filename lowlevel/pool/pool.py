"""Pool: arrays out of one arena with a hard cap in bytes.

    pool = Pool("256MiB")
    a = pool.empty((128, 512), "float32", tag="kq")
    pool.free(a)
    with pool.scope("layer 0"):
        b = pool.empty(1000)          # freed when the scope is left, also by an exception

The arena is one allocation. Blocks start at multiples of 256 bytes and take multiples of 256 bytes; `used`,
`peak` and every other count are of those rounded bytes. So "used <= budget" is exact, and equal sequences of
calls give equal offsets. An array without elements takes 0 bytes, and is tracked and freed like any other.

The pool holds on to every array until it is freed: dropping the last reference to one does not free it.
An array that is kept after `free` or `close` still points at memory that exists (the arena lives as long as
any array in it), but its contents are no longer its own.

Any thread may take and free. Scopes belong to the thread that entered them: a scope frees what that thread
took inside (in the innermost scope, if nested), whoever else has freed some of it before. What other threads
take meanwhile is in their scopes or in none. Do not call a pool from a signal handler or a `__del__`.

On a GPU a block belongs to the stream that is current when it is taken; free it with that stream, or the last that
works on it, as the current one. Memory that another stream freed may be taken at once: the stream waits
(`lowlevel.pool.stream_order`).
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple, cast

from lowlevel import devices
from lowlevel.fork_lock import fork_lock
from lowlevel.shapes import array_layout
from lowlevel.sizes import parse_size
from lowlevel.sure_exit import SureExit, id_of_handled

from .arena import ALIGNMENT, Arena, align_up
from .block import Block, by_offset, holders
from .budget_error import BudgetError, exact_size
from .memory import ArenaMemory, GuardedMemory, MemoryCorruptionError, call_site
from .refusals import fragmentation, refused, text_of_refused_close, why_not_mine
from .scope import OfThread, Scope
from .stream_order import StreamOrder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, NoReturn

    from numpy.typing import DTypeLike

    from lowlevel.arrays import Array
    from lowlevel.shapes import Shape
    from lowlevel.sizes import Size


__all__ = [
    "ALIGNMENT",
    "Block",
    "BudgetError",
    "MemoryCorruptionError",
    "Pool",
    "align_up",
]

SNAPSHOT_VERSION = 1
_NOT_TRACED = contextlib.nullcontext()


class _AtPeak(NamedTuple):
    """The highest use: how many bytes, the block that made it, and which of its blocks are freed by now."""

    used: int
    number: int
    freed: dict  # number -> block


class Pool:
    """An arena with a hard cap in bytes, on one device.

    Parameters
    ----------
    budget : int or str
        The cap: bytes, or text such as "256MiB". All of it is usable down to whole 256-byte units.
    device : str
        "cpu", "cuda:N" or "cudasim:N".
    debug : bool
        Find misuse, at a cost in time and real memory: every block has its own memory between guard
        bytes, is filled with NaN when taken and when freed, and freed memory is kept aside for a while. A write
        outside a block or after its release raises MemoryCorruptionError when the block is freed or leaves
        that quarantine; a NumPy array that is kept after `free` or `close` is read-only; `close` raises
        RuntimeError for blocks that were not freed; errors and `live` name the line that took a block. Counts and offsets are those of a pool without debug.
    memory : array of uint8, (n_bytes,), optional
        On the device, contiguous, from a multiple of 256 on, at least `budget` bytes: the arena, say a block of
        another pool. None: an allocation of its own. (A debug pool has memory for each block anyway.)

    Attributes
    ----------
    budget, used, peak, largest_free : int
        Bytes. `peak` is the highest `used` since the start or the last `reset_peak()`;
        `largest_free` is the largest request that would succeed now.
    fragmentation : float
        Share of the free bytes outside the largest free block, 0 to 1.
    live : list of Block
        The blocks that are taken, by offset.
    device : str
    debug, closed : bool

    Raises
    ------
    TypeError, ValueError
        A budget or device that is none; memory that does not do.
    MemoryError
        The machine does not give that much memory.
    """

    def __init__(
        self,
        budget: Size,
        device: str = "cpu",
        debug: bool = False,
        *,
        memory: Array | None = None,
    ) -> None:
        self._budget = parse_size(budget)
        self._device = devices.get(device)
        self._debug = bool(debug)
        self._arena = Arena(self._budget // ALIGNMENT * ALIGNMENT)
        self._memory = (
            GuardedMemory(self._device, self._arena.size)
            if debug
            else ArenaMemory(self._device, self._arena.size, memory)
        )
        self._order = (
            StreamOrder(cast("devices.StreamDevice", self._device))
            if self._device.has_streams
            else None
        )
        self._live: dict[
            Any, Any
        ] = {}  # id(array) -> (array, block, scope): what is taken; all else follows
        self._number = 0
        self._at_peak = _AtPeak(0, 0, {})
        self._trace = None
        self._lock = fork_lock()
        self._of_thread = OfThread()
        self._in_doubt = False  # while the books are being changed: `_live` alone is right
        self._unwanted: dict[
            Any, Any
        ] = {}  # id(array) -> array: taken by calls that an interrupt ended
        self._handled_outside = id(None)

    def empty(
        self,
        shape: Shape,
        dtype: DTypeLike = "float32",
        *,
        tag: str = "",
    ) -> Array:
        """Take an array; its contents are undefined.

        Parameters
        ----------
        shape : int or sequence of int
        dtype : dtype or str
            Any NumPy dtype of fixed size without Python objects, and those of ml_dtypes by name.
        tag : str
            What it is for, as errors and tools show it.

        Returns
        -------
        array
            C-contiguous, 256-byte aligned, on the pool's device.

        Raises
        ------
        BudgetError
            No free block holds it. Nothing has changed.
        TypeError, ValueError
            Not a shape, dtype or tag; the pool is closed.
        """
        shape, dtype, requested = array_layout(shape, dtype)
        if not isinstance(tag, str):
            raise TypeError(f"tag: expected a str, got {tag!r}")
        n_bytes = align_up(requested)
        scope = self._of_thread.innermost
        path = scope.path if scope else ""
        thread = threading.current_thread().name
        site = call_site() if self._debug else ""
        array = None
        try:
            with self._lock:
                if self._memory is None:
                    self._check_open()
                if self._in_doubt or self._unwanted:
                    self._rebuild()
                self._in_doubt = True
                offset = self._arena.take(n_bytes) if n_bytes else 0
                if offset is None:
                    self._in_doubt = False
                    raise self._refusal(requested, n_bytes, shape, dtype, tag)
                if self._order and n_bytes:
                    self._order.taken(offset, n_bytes)
                array = self._memory.take(offset, n_bytes, shape, dtype)
                number = self._number = self._number + 1
                block = Block(offset, n_bytes, number, shape, dtype, tag, path, thread, site)
                key = id(array)
                if scope:
                    scope.arrays[key] = array
                self._live[key] = (array, block, scope)
                used = self._arena.used
                if used > self._at_peak.used:
                    self._at_peak = _AtPeak(used, number, {})
                if self._trace:
                    self._trace.block("alloc", block, used)
                self._in_doubt = False
            return array
        except BaseException:  # refused, an interrupt, or a device that fails: nothing was taken
            if array is not None:
                self._unwanted[id(array)] = array
            self._mend()
            raise

    def free(self, array: Array) -> None:
        """Give back an array that `empty` returned.

        Raises
        ------
        ValueError
            Not a live array of this pool: freed before, a view of one, or from elsewhere; the pool is closed.
        """
        try:
            with self._lock:
                if self._memory is None:
                    self._check_open()
                if self._in_doubt or self._unwanted:
                    self._rebuild()
                if not self._give(array):
                    raise ValueError(self._why_not_mine(array))
        except BaseException:  # an interrupt, or a block that was overrun: it is free all the same
            self._mend()
            raise

    def scope(self, name: str) -> Scope:
        """Context manager that frees, when left, what this thread took inside. Leave scopes innermost first.

        Raises
        ------
        RuntimeError
            Entered twice, left out of order, or left by another thread than entered it; nothing is freed then.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {name!r}")
        return Scope(self, name)

    def close(self) -> None:
        """Free everything and let go of the arena. A second call does nothing.

        Raises
        ------
        RuntimeError
            Of a debug pool only. Another thread holds blocks in a scope, or in a call such as attention: the pool
            stays as it is, because to poison what they work on would spoil their results. Or blocks were not
            freed: they are now, and the pool is closed.
        MemoryCorruptionError
            Of a debug pool: something wrote outside a block or into a freed one. The pool is closed.
        """
        leaked = self._close(must=True)
        if leaked and self._debug:
            lines = "".join(f"\n  {block}" for block in leaked)
            raise RuntimeError(f"pool closed while {len(leaked)} block(s) were not freed:{lines}")

    def reset_peak(self) -> None:
        """Let `peak` start again from what is used now."""
        with self._lock:
            self._settle_doubts()
            used = self._arena.used
            self._at_peak = _AtPeak(used, self._number, {})
            if self._trace:
                self._trace.event("reset_peak", used)

    def call(self, name: str, **details: Any) -> AbstractContextManager:
        """Context manager that marks the start and end of a call in the trace, if there is one.

        Parameters
        ----------
        name : str
            "attention".
        **details
            Plain data: sizes, plan.scratch_bytes, ...
        """
        trace = self._trace
        return trace.call(self, name, details) if trace else _NOT_TRACED

    def snapshot(self) -> dict[str, Any]:
        """The state as plain data (JSON), the blocks at the peak included.

        Returns
        -------
        dict
            version, device, debug, closed, budget, used, peak, largest_free, fragmentation; holders (by tag, the
            largest first: tag, n_bytes, n_blocks, sites); live (the fields of Block); at_peak (used, holders, live).
        """
        with self._lock:
            self._settle_doubts()
            return self._snapshot()

    @property
    def budget(self) -> int:
        return self._budget

    @property
    def used(self) -> int:
        self._mend()
        return self._arena.used

    @property
    def peak(self) -> int:
        return self._at_peak.used

    @property
    def largest_free(self) -> int:
        with self._lock:
            self._settle_doubts()
            return self._arena.largest_free

    @property
    def fragmentation(self) -> float:
        with self._lock:
            self._settle_doubts()
            return fragmentation(self._arena)

    @property
    def live(self) -> list[Block]:
        with self._lock:
            self._settle_doubts()
            return self._blocks()

    @property
    def device(self) -> str:
        return self._device.name

    @property
    def debug(self) -> bool:
        return self._debug

    @property
    def closed(self) -> bool:
        return self._memory is None

    def __enter__(self) -> Pool:
        self._handled_outside = id_of_handled()
        return self

    __exit__ = SureExit()

    def _leave(self, error, again):
        if id(error) == self._handled_outside:
            self.close()
        else:
            self._close(must=False)  # a complaint about leaked blocks would hide the error

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pool cannot be copied or pickled: its memory has one owner; make another"
        )

    def __repr__(self) -> str:
        state = (
            "closed"
            if self.closed
            else f"{exact_size(self.used)} used, peak {exact_size(self.peak)}"
        )
        return f"<Pool {self.device}: {exact_size(self.budget)}, {state}>"

    # ------------------------------------------------------------ inside the lock

    def _check_open(self):
        if self._memory is None:
            raise ValueError("the pool is closed")

    def _blocks(self):
        return by_offset(block for _, block, _ in self._live.values())

    def _snapshot(self):
        live = self._blocks()
        peak, last, freed = self._at_peak
        # By number: an interrupt may leave one in both.
        at_peak = {**freed, **{block.number: block for block in live if block.number <= last}}
        at_peak = by_offset(at_peak.values())
        return {
            "version": SNAPSHOT_VERSION,
            "device": self._device.name,
            "debug": self._debug,
            "closed": self.closed,
            "budget": self._budget,
            "used": self._arena.used,
            "peak": peak,
            "largest_free": self._arena.largest_free,
            "fragmentation": fragmentation(self._arena),
            "holders": holders(live),
            "live": [block.to_dict() for block in live],
            "at_peak": {
                "used": peak,
                "holders": holders(at_peak),
                "live": [block.to_dict() for block in at_peak],
            },
        }

    def _give(self, array):
        """Take back a live array; False: it is none."""
        key = id(array)
        entry = self._live.get(key)
        if entry is None:
            return False
        _, block, scope = entry
        self._in_doubt = True
        self._forget(key, block, scope)
        if block.n_bytes:
            if self._order:
                self._order.freed(block.offset, block.n_bytes)
            self._arena.give(block.offset, block.n_bytes)
        if self._trace:
            self._trace.block("free", block, self._arena.used)
        self._memory.give(array, block)
        self._in_doubt = False
        return True

    def _forget(self, key, block, scope):
        """The least that frees a block: what `_rebuild` goes by."""
        if block.number <= self._at_peak.number:
            self._at_peak.freed[block.number] = block
        del self._live[key]
        if scope:
            scope.arrays.pop(key, None)

    def _release(self, arrays):
        """Take back live arrays, the last one first; one that was overrun keeps none of the others."""
        failure = None
        for array in reversed(arrays):
            try:
                self._give(array)
            except Exception as error:
                failure = failure or error
                self._rebuild()
        if failure:
            raise failure

    def _settle_doubts(self):
        if self._in_doubt or self._unwanted:
            self._rebuild()

    def _rebuild(self):
        """After an interruption at an unknown point: all books as the live blocks say."""
        self._in_doubt = True
        for key in list(self._unwanted):
            entry = self._live.get(key)
            if entry:
                self._forget(key, *entry[1:])
            self._unwanted.pop(key, None)
        blocks = self._blocks()
        self._arena = Arena(self._arena.size, [(block.offset, block.n_bytes) for block in blocks])
        if self._memory is not None:
            self._memory.reset([array for array, _, _ in self._live.values()])
        if self._order:
            self._order.reset([block.offset for block in blocks if block.n_bytes])
        if self._trace:
            live = [block.to_dict() for block in blocks]
            self._trace.event("resync", self._arena.used, live=live)
        self._in_doubt = False

    def _close(self, must):
        """Close, and return what was live; `must`: raise where a debug pool cannot."""
        with self._lock:
            self._settle_doubts()
            memory, leaked, failure = self._memory, [], None
            if memory is not None:
                if self._debug and (at_work := self._blocks_of_other_threads()):
                    if must:
                        raise RuntimeError(text_of_refused_close(at_work))
                    return []
                leaked = self._blocks()
                try:
                    self._release([array for array, _, _ in self._live.values()])
                except Exception as error:
                    failure = error
                nothing = Arena(0)
                self._memory = None
                self._arena = nothing
            if self._trace:
                write = self._trace.prepare("detach", 0, snapshot=self._snapshot())
                self._trace = None
                write()
            if memory is not None:
                memory.close()
            if failure:
                raise failure
            return leaked

    def _blocks_of_other_threads(self):
        """Blocks in scopes that other threads are in."""
        here = threading.current_thread()
        return [
            block
            for _, block, scope in self._live.values()
            if scope and scope.thread is not here and scope.thread.is_alive()
        ]

    def _start_trace(self, recorder):
        with self._lock:
            self._check_open()
            self._settle_doubts()
            if self._trace:
                raise ValueError("the pool is traced already")
            write = recorder.prepare_attach(
                self._blocks(),
                self._arena.used,
                device=self._device.name,
                budget=self._budget,
                peak=self._at_peak.used,
                debug=self._debug,
            )
            self._trace = recorder
            write()

    def _stop_trace(self, recorder):
        with self._lock:
            if self._trace is recorder:
                self._settle_doubts()
                write = recorder.prepare("detach", self._arena.used, snapshot=self._snapshot())
                self._trace = None
                write()

    def _mend(self):
        """Without the lock: after an interrupt, anybody's, put the books right."""
        if self._in_doubt or self._unwanted:
            with self._lock:
                self._settle_doubts()

    # ------------------------------------------------------------ texts

    def _refusal(self, requested, n_bytes, shape, dtype, tag):
        what = f"{dtype.name} {shape}, tag {tag!r}"
        error = refused(what, requested, n_bytes, self._arena, self._budget, self._blocks())
        if self._trace:
            self._trace.event(
                "refuse", tag=tag, size=n_bytes, used=error.used, error=error.to_dict()
            )
        return error

    def _why_not_mine(self, array):
        return why_not_mine(array, self._device, self._memory, self._blocks())

    # ------------------------------------------------------------ scopes

    def _free_scope(self, scope):
        with self._lock:
            self._settle_doubts()
            if self._memory is not None:
                self._release(list(scope.arrays.values()))
            scope.arrays.clear()  # an interrupt may leave one there that is free already

    def _scopes(self):
        """The scopes this thread is in, outermost first."""
        return self._of_thread.scopes()
