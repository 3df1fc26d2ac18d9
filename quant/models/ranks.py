"""A model on several ranks of a group: arguments of `quant.load`, checked, and what ranks plan by together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lowlevel import checks
from lowlevel.comm import ALONE, Comm, Outline

if TYPE_CHECKING:
    from lowlevel import Pool
    from lowlevel.devices import Device

    from .step import Choices

# What ranks divide; see `quant.load`.
SPLITS = ("tensor", "context")

_Result = TypeVar("_Result")


def checked_ranks(comm: Any, split: Any, where: Device) -> Outline:
    """This rank of a group as plans see it.

    Parameters
    ----------
    comm : Comm or None
    split : str or None
    where : Device
        The model's.

    Raises
    ------
    TypeError, ValueError
        No `Comm`, one of another device, no name of a split, or one of both without the other.
    """
    if split is not None:
        checks.choice(split, "split", SPLITS)
    if (comm is None) != (split is None):
        given = f"split {split!r} alone" if comm is None else f"{comm!r} alone"
        raise ValueError(f"comm, split: expected both or neither, got {given}")
    if comm is None:
        return ALONE
    if not isinstance(comm, Comm):
        raise TypeError(f"comm: expected a lowlevel.comm.Comm, got {comm!r}")
    if comm.device != where.name:
        raise ValueError(f"comm: expected one of {where.name}, the model's device, got {comm!r}")
    return comm.outline


def least_room(pool: Pool | None, comm: Comm | None) -> int | None:
    """Bytes that every rank has, so that all plan alike; None: as many as it takes."""
    room = None if pool is None else pool.largest_free
    if comm is None:
        return room
    return min((each for each in comm.share(room) if each is not None), default=None)


def check_alike(comm: Comm | None, choices: Choices) -> None:
    """Raise ValueError, on all ranks, where they would run differently: their passes would not meet."""
    if comm is None:
        return
    own = {f.name: repr(getattr(choices, f.name)) for f in dataclasses.fields(choices)}
    first, *others = comm.share(own)
    for rank, other in enumerate(others, start=1):
        for name in first.keys() - {"ranks", "device"}:
            if other[name] != first[name]:
                error = ValueError(
                    f"{name}: {first[name]} on rank 0, {other[name]} on rank {rank}; all ranks run alike"
                )
                error.on_all_ranks = True  # type: ignore[attr-defined]
                raise error


def run_alone(run: Callable[[], _Result]) -> _Result:
    """What `Comm.together` is without others."""
    return run()
