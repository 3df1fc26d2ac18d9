"""Where other allocators would have put the blocks: bookkeeping like `lowlevel.pool.arena.Arena`, for replayed traces.

A policy has ``take(n_bytes)`` (an offset, or None if nothing holds it), ``give(offset, n_bytes)``, ``used`` (bytes
taken, its own rounding included), ``largest_free`` and ``end`` (where the last block ends).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from .arena import ALIGNMENT, Arena

if TYPE_CHECKING:
    from typing import Any


class HoleList:
    """Holes by offset; freed neighbours melt into one. What a policy chooses is `_choose`.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._starts = [0] if size else []
        self._sizes = [size] if size else []

    @property
    def largest_free(self) -> int:
        return max(self._sizes, default=0)

    @property
    def end(self) -> int:
        if self._starts and self._starts[-1] + self._sizes[-1] == self.size:
            return self._starts[-1]
        return self.size

    def _choose(self, n_bytes: int) -> int | None:
        """Which hole; None: no hole is large enough."""
        raise NotImplementedError

    def take(self, n_bytes: int) -> int | None:
        index = self._choose(n_bytes)
        if index is None:
            return None
        offset = self._starts[index]
        if self._sizes[index] == n_bytes:
            del self._starts[index], self._sizes[index]
        else:
            self._starts[index] += n_bytes
            self._sizes[index] -= n_bytes
        self.used += n_bytes
        return offset

    def give(self, offset: int, n_bytes: int) -> None:
        self.used -= n_bytes
        starts, sizes = self._starts, self._sizes
        index = bisect_left(starts, offset)
        if index < len(starts) and starts[index] == offset + n_bytes:
            n_bytes += sizes[index]
            del starts[index], sizes[index]
        if index and starts[index - 1] + sizes[index - 1] == offset:
            sizes[index - 1] += n_bytes
        else:
            starts.insert(index, offset)
            sizes.insert(index, n_bytes)


class FirstFit(HoleList):
    """The hole with the lowest offset that holds the block."""

    def _choose(self, n_bytes):
        for index, size in enumerate(self._sizes):
            if size >= n_bytes:
                return index
        return None


class WorstFit(HoleList):
    """The largest hole, the lowest among equals."""

    def _choose(self, n_bytes):
        largest = self.largest_free
        return self._sizes.index(largest) if largest >= n_bytes else None


class Buddy:
    """Blocks of powers of two, each split from one twice its size, as many GPU and kernel allocators have them.

    A size that is no power of two is served by one region per bit of it, the largest first.

    Parameters
    ----------
    size : int
        Bytes, a multiple of ALIGNMENT.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.end = 0
        self._free: dict[Any, Any] = {}  # bytes of a free block -> its offsets
        self._top = {}  # offset where a region starts -> its bytes
        self._region_of = []  # starts of regions, sorted
        offset = 0
        for bit in reversed(range(size.bit_length())):
            if size & (1 << bit):
                self._free.setdefault(1 << bit, set()).add(offset)
                self._top[offset] = 1 << bit
                self._region_of.append(offset)
                offset += 1 << bit

    @property
    def largest_free(self) -> int:
        return max((n_bytes for n_bytes, offsets in self._free.items() if offsets), default=0)

    def take(self, n_bytes: int) -> int | None:
        wanted = _power_of_two(n_bytes)
        fitting = [size for size, offsets in self._free.items() if size >= wanted and offsets]
        if not fitting:
            return None
        size = min(fitting)
        offset = min(self._free[size])
        self._free[size].remove(offset)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(offset + size)
        self.used += wanted
        self.end = max(self.end, offset + wanted)
        return offset

    def give(self, offset: int, n_bytes: int) -> None:
        size = _power_of_two(n_bytes)
        self.used -= size
        region = self._region_of[bisect_left(self._region_of, offset + 1) - 1]
        while size < self._top[region]:
            buddy = region + ((offset - region) ^ size)
            if buddy not in self._free.get(size, ()):
                break
            self._free[size].remove(buddy)
            offset = min(offset, buddy)
            size *= 2
        self._free.setdefault(size, set()).add(offset)


def _power_of_two(n_bytes):
    return max(ALIGNMENT, 1 << (n_bytes - 1).bit_length())


POLICIES = {"best-fit": Arena, "first-fit": FirstFit, "worst-fit": WorstFit, "buddy": Buddy}
