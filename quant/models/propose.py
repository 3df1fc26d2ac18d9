"""A placement that fits: which layers go to which device, and whose experts, or which layers, stay with the CPU.

Counted by the plans that `quant.load` would make, for devices that need not be there. What is tried, in this order: all
on the devices; the experts of the first layers on the CPU, as few as will do; with all experts there, the last layers on
the devices, as many as fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel.pool.arena import align_up
from lowlevel.pool.budget_error import BudgetError

from .kv_cache import kv_type, stores
from .model_plan import ModelPlan, plan_parts
from .plan import Room
from .planning import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..gguf.model_file import ModelFile
    from .planned_file import PlannedFile

# Devices that plan as a GPU does, and need not be there.
_PLANNED_AS = "cudasim:{}"


class Proposal(NamedTuple):
    """What fits.

    Attributes
    ----------
    n_gpu_layers : int or None
    cpu_moe : bool or int
    tensor_split : tuple of int or None
        Layers of each device; None: there is one.
    plans : ModelPlan
        By devices called "cudasim", "cudasim:1", ...
    """

    n_gpu_layers: int | None
    cpu_moe: bool | int
    tensor_split: tuple[int, ...] | None
    plans: ModelPlan

    @property
    def arguments(self) -> str:
        """As ``kqcap run`` takes them."""
        n_devices = 1 if self.tensor_split is None else len(self.tensor_split)
        found = ["--device " + ",".join(f"cuda:{index}" for index in range(n_devices))]
        if self.tensor_split is not None:
            found.append("-ts " + ",".join(map(str, self.tensor_split)))
        if self.n_gpu_layers is not None:
            found.append(f"-ngl {self.n_gpu_layers}")
        if self.cpu_moe is not False:
            found.append("--cpu-moe" + ("" if self.cpu_moe is True else f" {self.cpu_moe}"))
        return " ".join(found)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        named = {
            name.replace("cudasim:", "cuda:").replace("cudasim", "cuda:0"): memory.to_dict()
            for name, memory in self.plans.by_device.items()
        }
        return {
            "arguments": self.arguments,
            "n_gpu_layers": self.n_gpu_layers,
            "cpu_moe": self.cpu_moe,
            "tensor_split": self.tensor_split,
            "parts": [each.part.to_dict() for each in self.plans.parts],
            "memory_of": named,
            "pinned_bytes": self.plans.memory.host,
        }


def propose(
    file: ModelFile | PlannedFile, rooms: Sequence[int], options: Mapping[str, Any]
) -> Proposal | None:
    """A placement on devices with so much room.

    Parameters
    ----------
    file : ModelFile or PlannedFile
    rooms : sequence of int
        Bytes of each device.
    options : mapping
        Arguments of `quant.load` that say how it runs: n_ctx, n_ubatch, amb, ...; all of them but those of placement.

    Returns
    -------
    Proposal or None
        None: not even one layer without its experts fits.
    """
    search = _Search(file, rooms, options)
    n_layer = len(search.config.layers)
    found = search.at(None, False)
    if found is not None:
        return found
    moe: bool | int = False
    if any(layer.routing for layer in search.config.layers):
        moe = True
        if search.at(None, True) is not None:
            most = _least(lambda n: search.at(None, n) is not None, 1, n_layer)
            return search.at(None, most)
    most = _most(lambda n: search.at(n, moe) is not None, 0, n_layer + 1)
    return search.at(most, moe) if most else None


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least number for which it holds; it does for `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _most(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The most for which it holds; it is taken to do for `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


class _Search:
    def __init__(self, file, rooms, options):
        self._file, self._options = file, options
        self._names = [
            _PLANNED_AS.format(index) if index else "cudasim" for index in range(len(rooms))
        ]
        self._rooms = {
            name: Room(room, name) for name, room in zip(self._names, rooms, strict=True)
        }
        self._passes: dict[Any, dict] = {}
        self._known: dict[tuple, Proposal | None] = {}
        whole = dict(n_gpu_layers=None, tensor_split=None, cpu_moe=False, place=())
        prepared = prepare(file, self._names[:1], {}, {**options, **whole})
        self.config, choices = prepared.config, prepared.first
        kind = kv_type(options["kv_type"])
        self._kv = [
            sum(store.n_bytes for store in stores(layer, choices.n_ctx, choices.n_ubatch, kind))
            for layer in self.config.layers
        ]

    def at(self, n_gpu_layers, cpu_moe):
        """The proposal with these, or None where a device is too small."""
        key = n_gpu_layers, cpu_moe
        if key not in self._known:
            self._known[key] = self._planned(n_gpu_layers, cpu_moe)
        return self._known[key]

    def _planned(self, n_gpu_layers, cpu_moe):
        counts = None
        if len(self._names) > 1:
            counts = self._counts(n_gpu_layers, cpu_moe)
            if not sum(counts):
                return None
        placed = dict(n_gpu_layers=n_gpu_layers, tensor_split=counts, cpu_moe=cpu_moe, place=())
        prepared = prepare(self._file, self._names, self._rooms, {**self._options, **placed})
        try:
            plans = plan_parts(
                *prepared, n_bytes=self._file.n_bytes, rooms=self._rooms, passes=self._passes
            )
        except BudgetError:
            return None
        return Proposal(n_gpu_layers, cpu_moe, counts, plans)

    def _counts(self, n_gpu_layers, cpu_moe):
        """Layers a device, so that all are filled to the same share: the least share with which all layers have a place."""
        units = self._unit_bytes(cpu_moe)
        n_layer = len(units) - 1
        if n_gpu_layers is not None and n_gpu_layers <= n_layer:
            units = units[n_layer - n_gpu_layers : n_layer]
        rooms = [room.n_bytes for room in self._rooms.values()]
        low, high = 0.0, 1.0
        best = _filled(units, rooms, high)
        for _ in range(20):
            middle = (low + high) / 2
            found = _filled(units, rooms, middle)
            if sum(found) == len(units):
                best, high = found, middle
            else:
                low = middle
        if sum(best) < len(units):  # they do not all fit: the last device is refused, by the plan
            best = (*best[:-1], best[-1] + len(units) - sum(best))
        return best

    def _unit_bytes(self, cpu_moe):
        """Weights and cache of each layer, and of the output, on a device."""
        found = []
        for layer, kv in zip(self.config.layers, self._kv, strict=True):
            on_host = cpu_moe is True or (cpu_moe is not False and layer.index < cpu_moe)
            names = {
                layer.tensors[name].name: layer.tensors[name].whole_bytes
                for name in layer.tensors
                if not (on_host and "_exps." in name)
            }
            found.append(kv + sum(map(align_up, names.values())))
        return [*found, align_up(self.config.output.whole_bytes)]


def _filled(units, rooms, share):
    """How many units each device holds where it is filled to a share at most, one after the other."""
    counts, at = [], 0
    for room in rooms:
        n, used = 0, 0
        while at < len(units) and used + units[at] <= share * room:
            used += units[at]
            at, n = at + 1, n + 1
        counts.append(n)
    return tuple(counts)
