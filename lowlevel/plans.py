"""The one shape that all plans have: attention's, products', sums by token, a model's pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .pool.arena import align_up

Scratch = tuple[tuple[str, int], ...]


class Plan(Protocol):
    """What a call will do and take, made of sizes alone; the run obeys it.

    Attributes
    ----------
    path : str
        The kernels that run.
    scratch : tuple of (str, int)
        Tag and bytes of each part.
    scratch_bytes : int
        What the pool's use grows by during the call, to the byte.
    """

    @property
    def path(self) -> str: ...

    @property
    def scratch(self) -> Scratch: ...

    @property
    def scratch_bytes(self) -> int: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; `scratch` as ``[{"tag": ..., "bytes": ...}, ...]``."""
        ...


@dataclass(frozen=True)
class NothingToDo:
    """The plan of a call without anything to compute."""

    path: str = "nothing"
    scratch: Scratch = ()
    scratch_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"path": self.path, "scratch": [], "scratch_bytes": 0}


def taken(scratch: Iterable[tuple[str, int]]) -> int:
    """Bytes that a pool hands out for these blocks, as it rounds them."""
    return sum(align_up(n_bytes) for _, n_bytes in scratch)


def sections(starts: Mapping[str, int], end: int) -> Scratch:
    """Tag and bytes of sections that fill one block up to `end`, by where each starts."""
    ends = [*starts.values(), end][1:]
    return tuple((tag, stop - at) for (tag, at), stop in zip(starts.items(), ends, strict=True))


def shown(scratch: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """`scratch` as a plan's `to_dict` has it."""
    return [{"tag": tag, "bytes": n_bytes} for tag, n_bytes in scratch]
