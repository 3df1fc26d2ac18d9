"""The CPU as a device: host memory as NumPy arrays (see `lowlevel.devices`)."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import axes
from lowlevel.pool.arena import ALIGNMENT
from lowlevel.sizes import format_size

from . import copy as copies
from . import kept, layout, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from lowlevel.devices import Device
    from lowlevel.shapes import Array


_CACHE_LINE = 64  # bytes

# From this size on an allocation is a mapping of its own. malloc may place even a large block in a gap of its
# heap, and keeps the pages when the block is freed: a closed pool would not be given back. Smaller blocks are
# left to malloc, whose warm pages spare a call with a pool of its own the page faults.
_MAPPED_BYTES = 32 * 2**20


def _memory(n_bytes):
    if n_bytes < _MAPPED_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(n_bytes, np.uint8)
    mapping = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # as NumPy asks for its own large arrays
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


class CpuDevice:
    """Memory and copies on the host."""

    name = "cpu"
    room = "cpu"
    has_streams = False
    in_host_memory = has_threads = True
    products_sort_rows = False
    activations = ("float32",)

    def allocate(self, n_bytes: int) -> Array:
        # The slack that reaches the next aligned address is not part of what is handed out. Pages are
        # touched by whoever writes them, so a large arena costs what is used of it.
        try:
            memory = _memory(n_bytes + ALIGNMENT)
        except (MemoryError, ValueError, OSError, OverflowError):  # also: more than an address says
            raise MemoryError(
                f"the machine does not give {format_size(n_bytes)} of memory"
            ) from None
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + n_bytes]

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return np.ndarray(shape, dtype, memory, offset)

    def address(self, array: Any) -> Any:
        return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else None

    def fill(self, memory: Array, start: int, stop: int, pattern: int) -> None:
        memory[start:stop].view(np.uint16)[...] = pattern

    def holds(self, memory: Array, start: int, stop: int, pattern: int) -> bool:
        return bool((memory[start:stop].view(np.uint16) == pattern).all())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return np.empty(shape, dtype)

    def empty_aligned(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        memory = np.empty(math.prod(shape) * dtype.itemsize + _CACHE_LINE - 1, np.uint8)
        start = -memory.__array_interface__["data"][0] % _CACHE_LINE
        return np.ndarray(shape, dtype, memory, start)

    def plain(self, array: Array) -> Array:
        return np.asarray(array)

    def synchronise(self) -> None:
        """Nothing is ever queued."""

    def own_stream(self) -> AbstractContextManager:
        return contextlib.nullcontext()

    def keep(self, run: Callable[[], Any]) -> Callable[[], Any]:
        with kept.keeping() as launches:
            run()
        return launches[0] if len(launches) == 1 else functools.partial(_all, launches)

    def keep_attention(self, run: Callable[[], Any]) -> Callable[[Any, Any, Any], bool]:
        with kept.keeping() as launches:
            run()
        return launches[0].again if launches else _not_kept

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run

    def writable(self, array: Array) -> bool:
        return array.flags.writeable

    def freeze(self, array: Array) -> None:
        array.flags.writeable = False

    def from_host(self, array: np.ndarray) -> Array:
        return array

    def upload(self, target: Array, array: np.ndarray) -> None:
        self.copy(target, array)

    def to_host(self, array: Array) -> np.ndarray:
        return np.asarray(array)

    def download(self, array: Array, out: np.ndarray) -> None:
        self.copy(out, array)

    def reach(self, peer: Device) -> None:
        """All memory is the same."""

    def receive(self, target: Array, source: Array) -> None:
        self.copy(target, source)

    pinned = allocate

    def copy_out(self, array: Array, out: np.ndarray) -> None:
        self.copy(out, array)

    def free_bytes(self) -> int | None:
        # All that the machine has: files that are mapped give way.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    copy = staticmethod(copies.copy_disjoint)

    def join(self, target: Array, sources: Sequence[Array], axis: int) -> None:
        for part, source in axes.parts(target, sources, axis):
            self.copy(part, source)

    overlap = staticmethod(copies.overlap)
    overlaps_itself = staticmethod(copies.overlaps_itself)
    resolve_n_threads = staticmethod(threads.resolve_n_threads)
    plan_limits = ()
    planner = (
        layout  # tiles and scratch of attention, pure arithmetic (see `lowlevel.attention.plan`)
    )

    @property
    def attention(self) -> Any:
        """``run(plan, operands, scratch)``; importing it loads Numba."""
        from . import attention

        return attention


def _all(launches):
    for launch in launches:
        launch()


def _not_kept(plan, k, v):
    return False


def open_device(index: int) -> CpuDevice:
    return CpuDevice()
