"""From checked arguments of `quant.load` to what is planned: the config, the parts, and how each device runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel import Pool, devices

from .choices import check_tokens, choices_of
from .config import ModelConfig
from .placement import CPU, Part, device_names, placement_of
from .plan import Room
from .ranks import checked_ranks, rank_part
from .split import AXES, split_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .step import Choices

# Arguments that say where something lies.
OF_PLACEMENT = ("n_gpu_layers", "tensor_split", "cpu_moe", "place")


class Prepared(NamedTuple):
    """What `plan_parts` goes by.

    Attributes
    ----------
    config : ModelConfig
        Of the whole model, or of this rank's share.
    parts : tuple of Part
    choices : dict of str to Choices
        Of each device that is used.
    """

    config: ModelConfig
    parts: tuple[Part, ...]
    choices: dict[str, Choices]

    @property
    def first(self) -> Choices:
        """Of the first part."""
        return self.choices[self.parts[0].device]


def checked_pools(pool: Any, names: Sequence[str]) -> dict[str, Pool]:
    """The pools that were given, by device.

    Raises
    ------
    ValueError
        One that is none, or of no device of the model, or a second one of a device.
    """
    given = [] if pool is None else list(pool) if isinstance(pool, (list, tuple)) else [pool]
    found: dict[str, Pool] = {}
    for each in given:
        device: Any = getattr(each, "device", None)
        allowed = names if len(given) == 1 and len(names) == 1 else (*names, CPU)
        if not isinstance(each, Pool) or device not in allowed or device in found:
            raise ValueError(
                f"pool: expected a lowlevel.Pool on {names[0]!r}"
                + f", or one on each of {', '.join(names)}" * (len(names) > 1)
                + f", got {each!r}"
            )
        found[device] = each
    return found


def rooms_of(names: Sequence[str], pools: Mapping[str, Pool]) -> dict[str, Room]:
    """What there is on each device and on the CPU: in its pool, or all that is free."""
    rooms = {name: Room(pool.largest_free) for name, pool in pools.items()}
    for name in (*names, CPU):
        if name not in rooms:
            rooms[name] = Room(devices.get(name).free_bytes(), name)
    return rooms


def prepare(
    file: Any,
    device: str | Sequence[str],
    rooms: Mapping[str, Room],
    options: Mapping[str, Any],
) -> Prepared:
    """The parts of a model, and how each device runs.

    Parameters
    ----------
    file : ModelFile or PlannedFile
    device : str or sequence of str
    rooms : mapping of str to Room
        Of devices of which something is known.
    options : mapping
        Arguments of `quant.load`, without those that are no part of a plan.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit.
    """
    names = device_names(device)
    n_ctx = options["n_ctx"]
    if n_ctx is not None:
        check_tokens("n_ctx", n_ctx)
    for name in names:
        devices.get(name)
    config = ModelConfig.from_file(file, n_ctx)
    known = [rooms[name].n_bytes for name in names if name in rooms]
    is_known = len(known) == len(names) and all(known)
    rest = {name: value for name, value in options.items() if name not in OF_PLACEMENT}
    comm, split = rest.pop("comm"), rest.pop("split")
    ranks = checked_ranks(comm, split, devices.get(names[0]))
    placed = {name: options[name] for name in OF_PLACEMENT}
    shares = placed.pop("tensor_split") if split == "layer" else None
    parts = placement_of(
        config, names, **placed, rooms=[each or 0 for each in known] if is_known else None
    )
    if comm is not None and (len(parts) > 1 or parts[0].host_experts or len(names) > 1):
        raise ValueError(
            "comm: ranks divide a model of one device each; leave out n_gpu_layers, cpu_moe and place, and tensor_split but "
            'for split "layer"'
        )
    if split == "layer":
        parts = (rank_part(config, names[0], ranks, shares),)
    used = dict.fromkeys(part.device for part in parts)
    used |= {CPU: None} if any(part.host_experts for part in parts) else {}
    choices = {}
    for name in used:
        # Threads are the CPU's: where nothing runs there, they are refused.
        own = rest if name == CPU or CPU not in used else {**rest, "n_threads": None}
        made = choices_of(config, devices.get(name), **own)
        choices[name] = dataclasses.replace(made, split=split or "", ranks=ranks)
    if split in AXES:
        config = split_config(config, split, ranks.rank, ranks.size)
    return Prepared(config, parts, choices)
