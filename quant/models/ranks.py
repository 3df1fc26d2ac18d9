"""A model on several ranks of a group: arguments of `quant.load`, checked, and what ranks plan by together."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lowlevel import checks
from lowlevel.comm import ALONE, Comm, Outline

from .fit import split_layers
from .placement import Part

if TYPE_CHECKING:
    from lowlevel.devices import Device

    from ..gguf.model_file import ModelFile
    from .config import ModelConfig
    from .plan import Room
    from .step import Choices

# What ranks divide; see `quant.load`.
SPLITS = ("layer", "tensor", "context")

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


def least_rooms(rooms: dict[str, Room], comm: Comm | None) -> dict[str, Room]:
    """What every rank has, so that all plan alike; where there are no ranks, `rooms` themselves."""
    if comm is None:
        return rooms
    own = rooms[comm.device]
    known = [each for each in comm.share(own.n_bytes) if each is not None]
    return {comm.device: own._replace(n_bytes=min(known, default=None))}


def rank_part(
    config: ModelConfig, device: str, ranks: Outline, shares: Sequence[float] | None
) -> Part:
    """This rank's layers where ranks have whole layers, one rank behind the other.

    Parameters
    ----------
    config : ModelConfig
        The whole.
    device : str
    ranks : Outline
    shares : sequence of float or None
        A number for each rank, as `tensor_split` of `quant.load`; None: evenly.

    Raises
    ------
    ValueError
        Another number of shares, or a rank without a layer.
    """
    if shares is not None and len(shares) != ranks.size:
        raise ValueError(
            f"tensor_split: {len(shares)} numbers for {ranks.size} ranks; one a rank is needed"
        )
    numbers: list[Any] = list(shares or [1] * ranks.size)
    # Layers alone count: the output stays with the last ones.
    owners = split_layers(config.n_layer - 1, numbers)
    if set(owners) != set(range(ranks.size)):
        raise ValueError(
            f"split: {ranks.size} ranks of which each has at least one of {config.n_layer} layers are not to be had; "
            "give fewer ranks, or another tensor_split"
        )
    start = owners.index(ranks.rank)
    stop = start + owners.count(ranks.rank)
    return Part(device, start, stop, ranks.rank == 0, ranks.rank == ranks.size - 1)


class RankCrossing:
    """Rows from the rank before, and to the one behind: see crossing.py. What they go through, the group has taken."""

    pinned_bytes = 0

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def take(self, memory: Any) -> None:
        """Nothing is needed."""

    def send(self, rows: Any, number: int) -> None:
        """To the next rank, which waits for them."""
        self._comm.send(rows, self._comm.rank + 1)

    def receive(self, rows: Any, number: int) -> None:
        """From the rank before."""
        self._comm.receive(rows, self._comm.rank - 1)


def check_alike(comm: Comm | None, choices: Choices, config: ModelConfig, file: ModelFile) -> None:
    """Raise ValueError, on all ranks, where they would run differently: their passes would not meet."""
    if comm is None:
        return
    own = {"model": _described(config, file)}
    own |= {f.name: repr(getattr(choices, f.name)) for f in dataclasses.fields(choices)}
    first, *others = comm.share(own)
    for rank, other in enumerate(others, start=1):
        for name in first.keys() - {"ranks", "device"}:
            if other[name] != first[name]:
                error = ValueError(
                    f"{name}: {first[name]} on rank 0, {other[name]} on rank {rank}; all ranks run alike"
                )
                error.on_all_ranks = True  # type: ignore[attr-defined]
                raise error


def _described(config, file):
    """What a pass depends on, but for the weights' own bytes: that all ranks have the same file."""
    infos = [file.tensor_info(name) for name in file]
    tensors = [(info.name, info.type_name, tuple(info.shape)) for info in infos]
    facts = dataclasses.replace(config, layers=()), tensors
    return f"{len(tensors)} tensors of {file.n_bytes} bytes (outline {zlib.crc32(repr(facts).encode()):08x})"


def run_alone(run: Callable[[], _Result]) -> _Result:
    """What `Comm.together` is without others."""
    return run()
