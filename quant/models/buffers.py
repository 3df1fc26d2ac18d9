"""The buffers of one pass: rows of activations by shape, how long they live, and where they lie.

Nothing here has data. `place` puts buffers that never live at once over each other, in one stretch of memory that is
taken before the first token: addresses are fixed then, and every byte is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel.pool.arena import align_up
from lowlevel.shapes import array_layout

if TYPE_CHECKING:
    from collections.abc import Sequence


class Buffer:
    """Memory of a pass: shape, dtype, first and last operation that needs it, and at last its offset."""

    __slots__ = ("dtype", "first", "last", "n_bytes", "name", "offset", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> None:
        self.name = name
        self.shape, self.dtype, n_bytes = array_layout(shape, dtype)
        self.n_bytes = align_up(n_bytes)  # as it lies
        self.first = self.last = self.offset = -1

    def touch(self, op: int) -> None:
        """Operation number `op` needs it."""
        self.first = op if self.first < 0 else self.first
        self.last = op


class Rows:
    """Rows of a buffer, or some of their columns: (n_tokens, n), as operations take them.

    `array` makes the view of the buffer's array.
    """

    __slots__ = ("array", "buffer", "shape")

    def __init__(
        self, buffer: Buffer, shape: tuple[int, ...], array: Callable[[Any], Any] = lambda a: a
    ) -> None:
        self.buffer, self.shape, self.array = buffer, shape, array

    def _view(self, shape, of):
        return Rows(self.buffer, shape, lambda a: of(self.array(a)))

    def rows(self, start: int, stop: int) -> Rows:
        """Some rows."""
        if (start, stop) == (0, self.shape[0]):
            return self
        return self._view((stop - start, *self.shape[1:]), lambda a: a[start:stop])

    def columns(self, start: int, stop: int) -> Rows:
        """Some columns."""
        if (start, stop) == (0, self.shape[-1]):
            return self
        return self._view((*self.shape[:-1], stop - start), lambda a: a[..., start:stop])

    def heads(self, n_head: int) -> Rows:
        """(n_head, n_tokens, d)"""
        n, width = self.shape
        d = width // n_head
        return self._view((n_head, n, d), lambda a: _split(a, n_head, d).transpose(1, 0, 2))

    def planes(self, n_planes: int) -> Rows:
        """(n_planes, rows of each, columns). Of whole rows of a buffer only."""
        n, width = self.shape
        shape = n_planes, n // n_planes, width
        return self._view(shape, lambda a: a.reshape(*shape))

    def flat(self) -> Rows:
        """One axis. Of whole rows of a buffer only."""
        n = math.prod(self.shape)
        return self._view((n,), lambda a: a.reshape(n))

    def head_rows(self, n_head: int) -> Rows:
        """(n_tokens n_head, d): each head of each token a row. Of whole rows of a buffer only."""
        n, width = self.shape
        d = width // n_head
        return self._view((n * n_head, d), lambda a: a.reshape(n * n_head, d))


class ExpertRows(NamedTuple):
    """Tokens' choices as rows.

    Attributes
    ----------
    tokens, experts : Rows
        int32, (n_rows,): each row's token and expert.
    weights : Rows
        float32, (n_rows,)
    per_token : int
        Groups of rows begin at multiples of it.
    """

    tokens: Rows
    experts: Rows
    weights: Rows
    per_token: int


def _split(a, n_head, d):
    """(n_tokens, n_head, d) of (n_tokens, n_head d). Rows with gaps have one head only."""
    return a[:, None] if n_head == 1 else a.reshape(a.shape[0], n_head, d)


def place(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset, the largest first at the lowest place where none that lives meanwhile lies.

    Returns
    -------
    int
        Bytes of the stretch.
    """
    placed: list[Buffer] = []
    end = 0
    for buffer in sorted(buffers, key=lambda b: -b.n_bytes):
        if buffer.first < 0:
            continue
        at = 0
        beside = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        for other in sorted(beside, key=lambda b: b.offset):
            if at + buffer.n_bytes > other.offset and at < other.offset + other.n_bytes:
                at = other.offset + other.n_bytes
        buffer.offset = at
        placed.append(buffer)
        end = max(end, at + buffer.n_bytes)
    return end


def place_scratch(buffers: Sequence[Buffer], sizes: Sequence[int | None]) -> list[int]:
    """Where each operation's scratch lies, beside the buffers that live meanwhile, when all have their places.

    Parameters
    ----------
    buffers : sequence of Buffer
    sizes : sequence of int or None
        Bytes of each operation's scratch. None: they are not known yet.

    Returns
    -------
    list of int
        Offsets: the lowest hole that is large enough, or above all that lives, as where the size is not known.
    """
    live: list[list[Buffer]] = [[] for _ in sizes]
    for buffer in buffers:
        if buffer.first >= 0:
            for beside in live[buffer.first : buffer.last + 1]:
                beside.append(buffer)
    return [_place_beside(beside, n_bytes) for beside, n_bytes in zip(live, sizes, strict=True)]


def _place_beside(live, n_bytes):
    at = 0
    for buffer in sorted(live, key=lambda b: b.offset):
        if n_bytes is not None and at + n_bytes <= buffer.offset:
            return at
        at = max(at, buffer.offset + buffer.n_bytes)
    return at
