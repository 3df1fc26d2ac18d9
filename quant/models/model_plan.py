"""What a whole model takes over its devices, before it takes anything: the plans of its parts, and bytes by device."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel import devices
from lowlevel.pool.budget_error import BudgetError

from .crossing import HostCrossing
from .host_experts import PlannedHost
from .loading import loading_bytes
from .memory import Memory
from .placement import CPU
from .plan import Planned, Room, choose, pass_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .config import ModelConfig
    from .placement import Part
    from .step import Choices


class PlannedPart(NamedTuple):
    """One part of a model.

    Attributes
    ----------
    part : Part
    planned : Planned
        Its passes.
    host : PlannedHost or None
        Those of its experts on the CPU.
    """

    part: Part
    planned: Planned
    host: PlannedHost | None


class ModelPlan:
    """The plan of a whole model: see `plan_parts`.

    Attributes
    ----------
    parts : tuple of PlannedPart
        In the order of a pass.
    by_device : dict of str to Memory
        What each device holds.
    crossings : list of HostCrossing
        What hands rows from each part to the next, in this process: of the one model that this is the plan of.
    loaded_bytes : int
        Of weights, to be copied to devices.
    pinned_bytes : int
        Of pinned memory, beside what the parts' own: for rows on their way from part to part, and to load.
    """

    def __init__(
        self, config: ModelConfig, parts: tuple[PlannedPart, ...], by_device: dict[str, Memory]
    ) -> None:
        self.config, self.parts, self.by_device = config, parts, by_device
        self.loaded_bytes = sum(
            each.weights_copied + each.weights_made
            for name, each in by_device.items()
            if devices.get(name).has_streams
        )
        n_ubatch = parts[0].planned.choices.n_ubatch
        self.crossings = [
            HostCrossing(
                devices.get(before.part.device),
                devices.get(after.part.device),
                n_ubatch,
                config.n_embd,
            )
            for before, after in itertools.pairwise(parts)
        ]
        self.pinned_bytes = sum(crossing.pinned_bytes for crossing in self.crossings)
        if self.loaded_bytes:
            self.pinned_bytes += loading_bytes(self.loaded_bytes)

    @property
    def memory(self) -> Memory:
        """Of all devices together."""
        return sum(self.by_device.values(), Memory(host=self.pinned_bytes))

    @property
    def choices(self) -> Choices:
        """Of the device with the first layers that lie on any but the CPU, or of the CPU."""
        found = [each.planned.choices for each in self.parts if each.planned.config.layers]
        return next((each for each in found if each.device != CPU), found[0])

    @property
    def rank_bytes(self) -> int:
        """What ranks hand one another by way of the host, in memory of their `Comm`."""
        return sum(each.planned.staging_bytes for each in self.parts)

    @property
    def attention_bytes(self) -> int:
        """Scratch of attention at most, of any part."""
        return max(each.planned.attention_bytes for each in self.parts)

    def fits(self, n_tokens: int, n_kv: int) -> bool:
        """Whether a pass of a size takes no more than was planned, with logits of all its tokens too."""
        return all(
            each.planned.fits(n_tokens, n_kv) and (each.host is None or each.host.fits(n_tokens))
            for each in self.parts
        )

    def of(self, n_tokens: int, n_outputs: int, n_kv: int) -> list[Any]:
        """The passes of all parts that have something to do."""
        sizes = [self.sizes(each, n_tokens, n_outputs) for each in self.parts]
        pairs = zip(self.parts, sizes, strict=True)
        return [each.planned.of(n, n_outputs, n_kv) for each, n in pairs if n]

    @staticmethod
    def sizes(part: PlannedPart, n_tokens: int, n_outputs: int) -> int:
        """Rows that reach a part of a pass: behind the last layer those with logits alone."""
        return n_tokens if part.planned.config.layers else n_outputs


def plan_parts(
    config: ModelConfig,
    parts: tuple[Part, ...],
    choices: Mapping[str, Choices],
    *,
    n_bytes: int,
    rooms: Mapping[str, Room],
    passes: dict[Any, dict] | None = None,
) -> ModelPlan:
    """The best plans of all parts that fit their devices.

    Parameters
    ----------
    config : ModelConfig
        Of the whole model.
    parts : tuple of Part
    choices : mapping of str to Choices
        Of each device.
    n_bytes : int
        Of the file.
    rooms : mapping of str to Room
        Of each device.
    passes : dict, optional
        Where passes are kept from call to call.

    Raises
    ------
    BudgetError
        A device is too small, which is named with what would do; or amb is below the smallest tile.
    """
    passes = {} if passes is None else passes
    first = parts[0]
    is_whole = first.has_input and first.has_output and not first.host_experts
    configs = [
        config.part(*part[1:5]).with_experts_on_host(frozenset(part.host_experts)) for part in parts
    ]
    makers: dict[str, list[Any]] = {}
    for number, (part, of_part) in enumerate(zip(parts, configs, strict=True)):
        kept = "whole" if is_whole else part
        weights = n_bytes if is_whole else weight_bytes(of_part)
        make = functools.partial(_make, passes, kept, of_part, weights)
        makers.setdefault(part.device, []).append(((number, 0), make))
        if part.host_experts:
            make_host = functools.partial(_make_host, of_part)
            makers.setdefault(CPU, []).append(((number, 1), make_host))
    found: dict[tuple[int, int], Any] = {}
    by_device = {}
    for device, entries in makers.items():
        room = rooms.get(device, Room())
        try:
            made, by_device[device] = choose([make for _, make in entries], choices[device], room)
        except BudgetError as error:
            if len(makers) == 1:
                raise
            raise _on_device(device, error) from None
        found.update({key: each for (key, _), each in zip(entries, made, strict=True)})
    planned = tuple(
        PlannedPart(part, found[number, 0], found.get((number, 1)))
        for number, part in enumerate(parts)
    )
    return ModelPlan(config, planned, by_device)


def _make(passes, kept, config, n_bytes, candidate):
    planned = Planned(config, candidate, passes.setdefault((kept, pass_key(candidate)), {}))
    return planned, planned.memory(n_bytes)


def _make_host(config, candidate):
    planned = PlannedHost(config, candidate)
    return planned, planned.memory()


def weight_bytes(config: ModelConfig) -> int:
    """Of the file's tensors that a part reads on its device; the embeddings stay on the host."""
    whole = {}
    for layer in config.layers:
        for name in layer.tensors:
            weight = layer.tensors[name]
            if not (layer.experts_on_host and "_exps." in weight.name):
                whole[weight.name] = weight.whole_bytes
    if config.has_output:
        for weight in (config.output, config.output_norm):
            whole[weight.name] = weight.whole_bytes
    return sum(whole.values())


def _on_device(device, error):
    """The same error, which names the device among several."""
    if device in str(error):
        return error
    return BudgetError(
        f"{device}: {error}",
        requested=error.requested,
        budget=error.budget,
        smallest_budget=error.smallest_budget,
        remedy=error.remedy,
    )
