"""The memory behind a pool's offsets: one arena, or (debug mode) guarded blocks."""

from __future__ import annotations

import collections
import math
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from .arena import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from lowlevel.arrays import Array
    from lowlevel.devices import Device
    from lowlevel.pool.block import Block


# 16-bit patterns that read as NaN in float16, bfloat16, float32 and float64 alike.
TAKEN = 0x7FFA
FREED = 0xFFFD
CANARY = 0xCAFE
GUARD_BYTES = ALIGNMENT  # on either side of a block
QUARANTINE_BYTES = 64 * 2**20
SITE_DEPTH = 3


class MemoryCorruptionError(RuntimeError):
    """Something wrote outside a block of a debug pool, or into one after it was freed."""


class ArenaMemory:
    """One allocation; a block is a view of it.

    Parameters
    ----------
    device : object
        See `lowlevel.devices`.
    n_bytes : int
    memory : array of uint8, optional
        Taken for it instead of an allocation.
    """

    def __init__(self, device: Device, n_bytes: int, memory: Array | None = None) -> None:
        self._device = device
        self._arena = device.allocate(n_bytes) if memory is None else memory
        if memory is not None:
            _check_memory(device, n_bytes, memory)
        self._address = device.address(self._arena)
        self._n_bytes = n_bytes

    def take(self, offset: int, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return self._device.view(self._arena, offset, shape, dtype)

    def give(self, array: Array, block: Block) -> None:
        pass

    def reset(self, arrays: Iterable[Array]) -> None:
        pass

    def offset_of(self, address: int) -> int | None:
        """Offset that an address has in the arena, or None."""
        offset = address - self._address
        return offset if 0 <= offset < max(self._n_bytes, 1) else None

    def close(self) -> None:
        self._arena = None


def _check_memory(device: Device, n_bytes: int, memory: Array) -> None:
    dtype, shape = getattr(memory, "dtype", None), getattr(memory, "shape", None)
    if dtype != np.uint8 or shape is None or len(shape) != 1 or device.address(memory) is None:
        raise TypeError(
            f"memory: expected a flat array of uint8 on {device.name}, got {type(memory).__name__} "
            f"of {dtype} {shape}"
        )
    if shape[0] < n_bytes or memory.strides[0] != 1 or device.address(memory) % ALIGNMENT:
        raise ValueError(
            f"memory: expected {n_bytes} contiguous bytes from a multiple of {ALIGNMENT} on, got "
            f"{shape[0]} with stride {memory.strides[0]} at {device.address(memory):#x}"
        )


class GuardedMemory:
    """Every block in memory of its own between guards, poisoned, kept aside for a while when freed.

    The guard behind an array starts with the first byte after its last element: what a block is rounded up by
    belongs to it.
    """

    def __init__(self, device: Device, n_bytes: int) -> None:
        self._device = device
        self._cells: dict[Any, Any] = {}  # address of a live block -> (its offset, n_bytes, memory)
        self._quarantine: collections.deque = (
            collections.deque()
        )  # (block, memory), the oldest first
        self._quarantine_bytes = 0

    def take(self, offset: int, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        memory = self._device.allocate(n_bytes + 2 * GUARD_BYTES)
        end = GUARD_BYTES + n_bytes
        array_end = GUARD_BYTES + math.prod(shape) * dtype.itemsize
        self._device.fill(memory, 0, GUARD_BYTES, CANARY)
        self._device.fill(memory, GUARD_BYTES, end, TAKEN)
        # A pattern has two bytes: of an array with an odd number of them it takes the last as well.
        self._device.fill(memory, array_end & ~1, end + GUARD_BYTES, CANARY)
        array = self._device.view(memory, GUARD_BYTES, shape, dtype)
        self._cells[self._device.address(memory) + GUARD_BYTES] = (offset, n_bytes, memory)
        return array

    def give(self, array: Array, block: Block) -> None:
        _, n_bytes, memory = self._cells.pop(self._device.address(array))
        end = GUARD_BYTES + n_bytes
        before = self._device.holds(memory, 0, GUARD_BYTES, CANARY)
        after = self._holds_after(memory, GUARD_BYTES + block.array_bytes, end + GUARD_BYTES)
        self._device.fill(memory, GUARD_BYTES, end, FREED)
        self._device.synchronise()  # another stream may look at it next
        self._device.freeze(array)
        if not (before and after):
            where = "past the end" if before else "before the start"
            raise MemoryCorruptionError(f"something wrote {where} of block {block}")
        self._quarantine.append((block, memory))
        self._quarantine_bytes += n_bytes
        while self._quarantine_bytes > QUARANTINE_BYTES:
            self._release_oldest()

    def reset(self, arrays: Iterable[Array]) -> None:
        """After an interruption at an unknown point: only `arrays` are live."""
        live = {self._device.address(array) for array in arrays}
        self._cells = {start: cell for start, cell in self._cells.items() if start in live}
        self._quarantine_bytes = sum(block.n_bytes for block, _ in self._quarantine)

    def _holds_after(self, memory, start, end):
        """Whether the guard from any byte `start` on is as it was."""
        if start % 2:
            (byte,) = self._device.to_host(self._device.view(memory, start, (1,), np.dtype("u1")))
            if byte != CANARY >> 8:
                return False
        return self._device.holds(memory, start + start % 2, end, CANARY)

    def offset_of(self, address: int) -> int | None:
        """Offset of an address in a live block; -1 in a freed one; None elsewhere."""
        for start, (offset, n_bytes, _) in self._cells.items():
            if start <= address < start + max(n_bytes, 1):
                return offset + address - start
        for block, memory in self._quarantine:
            start = self._device.address(memory) + GUARD_BYTES
            if start <= address < start + max(block.n_bytes, 1):
                return -1
        return None

    def close(self) -> None:
        self._cells.clear()
        while self._quarantine:
            self._release_oldest()

    def _release_oldest(self):
        block, memory = self._quarantine.popleft()
        self._quarantine_bytes -= block.n_bytes
        if not self._device.holds(memory, GUARD_BYTES, GUARD_BYTES + block.n_bytes, FREED):
            raise MemoryCorruptionError(f"something wrote into block {block} after it was freed")


def call_site() -> str:
    """Who called the pool: "file.py:12 function < caller.py:3 main"."""
    frame = sys._getframe(1)
    here = os.path.dirname(__file__)
    own = {os.path.join(here, name) for name in ("pool.py", "memory.py")}
    while frame and frame.f_code.co_filename in own:
        frame = frame.f_back
    sites: list[Any] = []
    while frame and len(sites) < SITE_DEPTH:
        code = frame.f_code
        sites.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(sites)
