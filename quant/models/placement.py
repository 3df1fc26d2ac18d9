"""Where the layers, the output and the experts of a model lie: arguments of `quant.load`, checked and made one answer."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import devices

from .fit import split_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .config import LayerConfig, ModelConfig

CPU = "cpu"
# What `cpu_moe` stands for, as llama.cpp's does.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_exps\."
# Devices as llama.cpp's -ot spells them.
_FOREIGN = re.compile(r"(CPU|CUDA)(\d*)")


class Part(NamedTuple):
    """Layers that lie on one device, one after the other.

    Attributes
    ----------
    device : str
    start, stop : int
        The layers: from `start` to before `stop`; none where they are equal.
    has_input, has_output : bool
        Passes begin, and end there.
    host_experts : tuple of int
        Layers whose routed experts are worked on by the CPU.
    """

    device: str
    start: int
    stop: int
    has_input: bool
    has_output: bool
    host_experts: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**self._asdict(), "host_experts": list(self.host_experts)}

    def __str__(self) -> str:
        n = self.stop - self.start
        what = [f"layers {self.start} to {self.stop - 1}"] if n > 1 else []
        what += [f"layer {self.start}"] if n == 1 else []
        what += ["output"] if self.has_output else []
        text = f"{self.device}: {' and '.join(what)}"
        if self.host_experts:
            n_host = len(self.host_experts)
            text += f" (experts of {n_host} layer{'s' * (n_host > 1)} on the CPU)"
        return text


def device_names(device: str | Sequence[str]) -> list[str]:
    """`device` of `quant.load` as a list of canonical names.

    Raises
    ------
    TypeError, ValueError
        No name, or none at all; one that is there twice.
    """
    given = [device] if isinstance(device, str) else device
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(
            f'device: expected a name, or a list such as ["cuda:0", "cuda:1"]; got {device!r}'
        )
    names = [devices.canonical_name(name) for name in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"device: {twice!r} is named twice; got {list(given)}")
    return names


def placement_of(
    config: ModelConfig,
    names: Sequence[str],
    *,
    n_gpu_layers: int | None = None,
    tensor_split: Sequence[float] | None = None,
    cpu_moe: bool | int = False,
    place: Iterable[tuple[str, str]] = (),
    rooms: Sequence[int] | None = None,
) -> tuple[Part, ...]:
    """The parts of a model in the order in which a pass goes through them.

    Parameters
    ----------
    config : ModelConfig
    names : sequence of str
        Of the devices, from `device_names`.
    n_gpu_layers, tensor_split, cpu_moe, place
        See `quant.load`.
    rooms : sequence of int, optional
        Bytes of each device, in proportion to which layers are split where `tensor_split` does not say how; None: evenly.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit, or a tensor that cannot lie where it is put; both are named.
    """
    of_unit = _by_layers(config.n_layer, names, n_gpu_layers, tensor_split, rooms)
    rules = _checked_rules(place, names)
    if cpu_moe is not False:
        rules.append(_moe_rule(config, names, cpu_moe))
    return _by_rules(config, of_unit, rules)


def _by_layers(n_layer, names, n_gpu_layers, tensor_split, rooms):
    """The device of each layer, and at the end that of the output."""
    n_on = n_layer + 1
    if n_gpu_layers is not None:
        _check_count("n_gpu_layers", n_gpu_layers)
        if list(names) == [CPU]:
            raise ValueError(
                f"n_gpu_layers: {n_gpu_layers} on no other device than the CPU; name one, such as device='cuda:0'"
            )
        n_on = min(int(n_gpu_layers), n_layer + 1)
    if tensor_split is not None and len(tensor_split) != len(names):
        raise ValueError(
            f"tensor_split: {len(tensor_split)} numbers for {len(names)} device{'s' * (len(names) > 1)} "
            f"({', '.join(names)}); one a device is needed"
        )
    shares = tensor_split if tensor_split is not None else rooms or [1] * len(names)
    of_device = split_layers(n_on - 1, list(shares)) if n_on else []
    on = [names[index] for index in of_device]
    if n_on > n_layer:
        return on
    return [CPU] * (n_layer - n_on) + on + [CPU]  # the output is on a device with all layers alone


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a number of layers, got {value!r}")
    if value < 0:
        raise ValueError(f"{name}: expected 0 or more layers, got {value}")


def _moe_rule(config, names, cpu_moe):
    if not isinstance(cpu_moe, bool):
        _check_count("cpu_moe", cpu_moe)
    if list(names) == [CPU]:
        raise ValueError(
            "cpu_moe: everything is on the CPU; name a device, such as device='cuda:0'"
        )
    if not any(layer.routing for layer in config.layers):
        raise ValueError(f"cpu_moe: this model ({config.architecture}) has no experts")
    if cpu_moe is True:
        return _Rule("cpu_moe", re.compile(EXPERTS), CPU)
    layers = "|".join(map(str, range(min(cpu_moe, config.n_layer)))) or "-"
    return _Rule("cpu_moe", re.compile(rf"^blk\.({layers}){EXPERTS}"), CPU)


class _Rule(NamedTuple):
    name: str  # for messages
    pattern: re.Pattern
    device: str


def _checked_rules(place, names):
    rules = []
    for entry in place:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise TypeError(f'place: expected pairs such as (r"ffn_.*_exps", "cpu"), got {entry!r}')
        text, device = entry
        try:
            pattern = re.compile(text)
        except (re.error, TypeError) as error:
            raise ValueError(f"place: {text!r} is no regular expression: {error}") from None
        device = _device_named(device)
        if device not in (CPU, *names):
            raise ValueError(
                f"place: {text!r} goes to {device!r}, which is none of the model's devices: {', '.join((*names, CPU))}"
            )
        rules.append(_Rule(f"place: {text!r}", pattern, device))
    return rules


def _device_named(name):
    """Also as llama.cpp spells it: "CPU", "CUDA0"."""
    match = _FOREIGN.fullmatch(name) if isinstance(name, str) else None
    if match:
        name = match[1].lower() + (f":{match[2]}" if match[2] else "")
    return devices.canonical_name(name)


class _Group(NamedTuple):
    """Tensors that lie together.

    Attributes
    ----------
    what : str
        For messages.
    leading : tuple of str
        Tensors that a rule has to say something of; others follow.
    all : tuple of str
    """

    what: str
    leading: tuple[str, ...]
    all: tuple[str, ...]


def _by_rules(config, of_unit, rules):
    used: set[int] = set()
    found = _Matches(rules, used)
    found.device(_Group("token_embd.weight", (), ("token_embd.weight",)), CPU)
    embedding = found.of("token_embd.weight")
    if embedding is not None and embedding.device != CPU:
        raise ValueError(
            f"{embedding.name}: 'token_embd.weight' stays in the host's memory, where tokens' rows are looked up"
        )
    of_layer, on_host = [], []
    for layer, device in zip(config.layers, of_unit[:-1], strict=True):
        rest, experts = _groups(layer)
        device = found.device(rest, device)
        of_layer.append(device)
        if experts.all:
            there = found.device(experts, device)
            if there not in (device, CPU):
                raise ValueError(
                    f"{found.of(experts.all[0]).name}: {experts.all[0]!r} on {there}, while the rest of layer "
                    f"{layer.index} is on {device}: experts go to that device or to the CPU"
                )
            if there != device:
                on_host.append(layer.index)
    output = _Group("the output", ("output.weight",), ("output.weight", "output_norm.weight"))
    output_device = found.device(output, of_unit[-1])
    for index, rule in enumerate(rules):
        if index not in used and rule.name != "cpu_moe":
            raise ValueError(f"{rule.name} matches no tensor that can be placed")
    return _parts([*of_layer, output_device], frozenset(on_host))


class _Matches:
    """Which rule says something of a tensor: the first that matches."""

    def __init__(self, rules, used):
        self._rules, self._used = rules, used

    def of(self, name):
        found = None
        for index, rule in enumerate(self._rules):
            if rule.pattern.search(name):
                self._used.add(index)
                found = found or rule
        return found

    def device(self, group, default):
        """Where a group lies; ValueError, with a tensor's name, where rules would tear it."""
        rules = {name: self.of(name) for name in group.all}
        known = {name: rule for name, rule in rules.items() if rule is not None}
        if not known:
            return default
        first, rule = next(iter(known.items()))
        for name in group.all:
            other = rules[name]
            if other is None and name not in group.leading:
                continue
            device = default if other is None else other.device
            if device != rule.device:
                raise ValueError(
                    f"{rule.name}: {first!r} would lie on {rule.device} and {name!r} on {device}; "
                    f"{group.what} lie together: match all of {', '.join(group.leading or group.all)}"
                )
        return rule.device


def _groups(layer: LayerConfig) -> tuple[_Group, _Group]:
    """(all but the experts, the experts)"""
    names = list(dict.fromkeys(layer.tensors[name].name for name in layer.tensors))
    experts = tuple(name for name in names if "_exps." in name)
    rest = tuple(name for name in names if "_exps." not in name)
    leading = tuple(name for name in experts if name.endswith(".weight"))
    return (
        _Group(f"the tensors of layer {layer.index} other than its experts", rest, rest),
        _Group(f"the experts of layer {layer.index}", leading, experts),
    )


def _parts(of_unit, on_host):
    """Neighbours on one device as one part."""
    n_layer = len(of_unit) - 1
    parts = []
    at = 0
    for device, units in itertools.groupby(of_unit):
        stop = at + len(list(units))
        layers = range(at, min(stop, n_layer))
        host = tuple(sorted(on_host.intersection(layers)))
        parts.append(Part(device, at, layers.stop, at == 0, stop > n_layer, host))
        at = stop
    return tuple(parts)
