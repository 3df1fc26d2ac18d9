"""Where blocks lie in one span of bytes: best fit with coalescing, as pure bookkeeping.

Nothing here holds memory. `lowlevel.pool` places its arrays by it, and anything that wants to know
"would it have fit?" (the remedy in a BudgetError, a replayed trace) runs the same code without a byte.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


ALIGNMENT = 256  # bytes: a cache line, an AVX-512 vector and a CUDA allocation all divide it


def align_up(n_bytes: int) -> int:
    """Bytes a block of `n_bytes` takes: rounded up to the next multiple of ALIGNMENT."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """Offsets for blocks in `size` bytes.

    A block goes into the smallest hole that holds it (the lowest one among equals); into the one at the arena's
    end only if no other does. So equal sequences of calls give equal offsets, in every arena that is large enough:
    what a refusal says of a larger budget is true of the same history run again. Freed neighbours melt into one hole at once: two holes
    never touch. Each call costs O(log holes) comparisons and one list insertion.

    Parameters
    ----------
    size : int
        Bytes, a multiple of ALIGNMENT.
    blocks : iterable of (offset, n_bytes)
        Blocks that are taken from the start; they must not overlap.

    Attributes
    ----------
    size, used : int
        Bytes in all, bytes taken.
    """

    def __init__(self, size: int, blocks: Iterable[tuple[int, int]] = ()) -> None:
        self.size = size
        self.used = 0
        self._holes: list[Any] = []  # (bytes, offset), sorted: the smallest hole first
        self._size_from: dict[Any, Any] = {}  # offset where a hole starts -> its bytes
        self._start_to: dict[Any, Any] = {}  # offset where a hole ends -> where it starts
        edge = 0
        for offset, n_bytes in sorted(blocks):
            if n_bytes == 0:
                continue
            if offset < edge or offset + n_bytes > size:
                raise ValueError(
                    f"block at {offset} of {n_bytes} bytes overlaps or leaves the arena"
                )
            if offset > edge:
                self._add_hole(edge, offset - edge)
            edge = offset + n_bytes
            self.used += n_bytes
        if edge < size:
            self._add_hole(edge, size - edge)

    @property
    def largest_free(self) -> int:
        """Bytes of the largest hole."""
        return self._holes[-1][0] if self._holes else 0

    @property
    def end(self) -> int:
        """Offset at which the last block ends: what lies above is one hole."""
        return self._start_to.get(self.size, self.size)

    def holes(self) -> list[tuple[int, int]]:
        """Every hole as (offset, n_bytes), by offset."""
        return sorted(self._size_from.items())

    def take(self, n_bytes: int) -> int | None:
        """Offset for a block of `n_bytes` (a multiple of ALIGNMENT, above 0), or None if no hole holds it."""
        holes = self._holes
        index = bisect_left(holes, (n_bytes,))
        if index == len(holes):
            return None
        hole_bytes, offset = holes[index]
        end = offset + hole_bytes
        if end == self.size and index + 1 < len(holes):
            index += 1
            hole_bytes, offset = holes[index]
            end = offset + hole_bytes
        del holes[index], self._size_from[offset]
        rest = hole_bytes - n_bytes
        if rest:
            self._size_from[end - rest] = rest
            self._start_to[end] = end - rest
            insort(holes, (rest, end - rest))
        else:
            del self._start_to[end]
        self.used += n_bytes
        return offset

    def give(self, offset: int, n_bytes: int) -> None:
        """Take back a block that `take` placed at `offset`."""
        self.used -= n_bytes
        holes = self._holes
        start, end = offset, offset + n_bytes
        before = self._start_to.pop(start, None)
        if before is not None:
            del holes[bisect_left(holes, (start - before, before))]
            start = before
        after_bytes = self._size_from.pop(end, None)
        if after_bytes is not None:
            del holes[bisect_left(holes, (after_bytes, end))]
            end += after_bytes
        self._size_from[start] = end - start
        self._start_to[end] = start
        insort(holes, (end - start, start))

    def _add_hole(self, offset, n_bytes):
        self._size_from[offset] = n_bytes
        self._start_to[offset + n_bytes] = offset
        insort(self._holes, (n_bytes, offset))


def smallest_size(n_bytes: int, blocks: Iterable[tuple[int, int]]) -> int:
    """Smallest arena that holds a further block of `n_bytes` beside `blocks`, which stay where they are.

    It is what a hole or the end of the arena must reach, found by placing the block, not by a formula.
    """
    blocks = list(blocks)
    end = max((offset + size for offset, size in blocks), default=0)
    for size in (end, end + n_bytes):
        if Arena(size, blocks).take(n_bytes) is not None:
            return size
    raise AssertionError("a hole of n_bytes at the end always holds n_bytes")
