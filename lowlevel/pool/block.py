"""What a pool knows of one array, and sums over many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeVar

    AnyBlock = TypeVar(
        "AnyBlock", bound=Any
    )  # what has an `offset`: a `Block`, or one that a trace tells of


SHOWN_SITES = 3


class Block(NamedTuple):
    """What a pool knows of one array.

    Attributes
    ----------
    offset, n_bytes : int
        Where it starts in the arena, and the bytes it takes (a multiple of 256, or 0).
    number : int
        It was the number-th block taken from its pool, from 1.
    shape : tuple of int
    dtype : numpy.dtype
    tag, scope : str
        What it is for; the scopes it was taken in, "layer 0/attention" ("" in none).
    thread : str
        The name of the thread that took it.
    site : str
        Where in the program: "file.py:12 function < caller.py:3 main" (in debug mode, else "").
    """

    offset: int
    n_bytes: int
    number: int
    shape: tuple
    dtype: np.dtype
    tag: str
    scope: str
    thread: str
    site: str

    @property
    def array_bytes(self) -> int:
        """Bytes of the array's elements, without what `n_bytes` is rounded up by."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data (JSON)."""
        return {**self._asdict(), "shape": list(self.shape), "dtype": self.dtype.name}

    def __str__(self) -> str:
        scope = f" in scope {self.scope!r}" if self.scope else ""
        site = f", taken at {self.site}" if self.site else ""
        return (
            f"{self.tag!r}{scope}: {self.dtype.name} {self.shape}, {self.n_bytes} B "
            f"at offset {self.offset}{site}"
        )


def by_offset(blocks: Iterable[AnyBlock]) -> list[AnyBlock]:
    """The blocks sorted by offset; those without bytes come before the one they share it with."""
    return sorted(blocks, key=lambda block: (block.offset, block.n_bytes, block.number))


def holders(blocks: Iterable[Any]) -> list[dict[str, Any]]:
    """Bytes by tag.

    Returns
    -------
    list of dict
        tag, n_bytes, n_blocks and (debug mode) the first few different sites; most bytes first, then by tag.
    """
    by_tag: dict[Any, Any] = {}
    for block in blocks:
        holder = by_tag.setdefault(
            block.tag, {"tag": block.tag, "n_bytes": 0, "n_blocks": 0, "sites": []}
        )
        holder["n_bytes"] += block.n_bytes
        holder["n_blocks"] += 1
        sites = holder["sites"]
        if block.site and block.site not in sites and len(sites) < SHOWN_SITES:
            sites.append(block.site)
    return sorted(by_tag.values(), key=lambda holder: (-holder["n_bytes"], holder["tag"]))
