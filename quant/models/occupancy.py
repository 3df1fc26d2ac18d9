"""How busy devices are that a model's layers are split over: u-batches go from device to device, one behind the other.

A device works on a u-batch when it is done with the one before, and has been handed its rows: Huang et al., "GPipe"
(arXiv:1811.06965), for prompts alone. Nothing is run: work is counted in FLOPs of the passes' own plans.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .layers import record_pass

if TYPE_CHECKING:
    from .config import ModelConfig
    from .step import Choices

_OF_LAYER = re.compile(r"blk\.(\d+)\.")


class Occupancy(NamedTuple):
    """A pipeline's schedule.

    Attributes
    ----------
    seconds : float
        From the first u-batch's begin to the last one's end.
    busy : tuple of float
        Seconds that each device works.
    """

    seconds: float
    busy: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """The share of all devices' time in which they have nothing to do."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0

    @property
    def speedup(self) -> float:
        """Over the same devices where one works at a time."""
        return sum(self.busy) / self.seconds if self.seconds else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**self._asdict(), "bubble": self.bubble, "speedup": self.speedup}


def pipeline(work: Sequence[Sequence[float]], hop: float = 0.0) -> Occupancy:
    """The schedule of u-batches through devices.

    Parameters
    ----------
    work : sequence of sequence of float
        Of each u-batch, seconds on each device.
    hop : float
        Seconds from a device to the next: both are free meanwhile.
    """
    last = begins(work, hop)[-1][-1] + work[-1][-1]
    return Occupancy(last, tuple(map(sum, zip(*work, strict=True))))


def begins(work: Sequence[Sequence[float]], hop: float = 0.0) -> list[list[float]]:
    """When each device begins with each u-batch, in seconds from the first one's begin; see `pipeline`."""
    found: list[list[float]] = []
    done = [0.0] * len(work[0])  # of the u-batch before
    for seconds in work:
        handed = 0.0
        found.append([])
        for device, spent in enumerate(seconds):
            found[-1].append(max(handed, done[device]))
            done[device] = found[-1][device] + spent
            handed = done[device] + hop
    return found


def split_by_work(work: Sequence[float], n_devices: int) -> list[list[int]]:
    """Layers of each device, one after the other, so that the busiest device has as little to do as can be.

    Parameters
    ----------
    work : sequence of float
        Of each layer.
    n_devices : int
    """
    low, high = max(work), sum(work)
    for _ in range(60):  # halves of what is left: to a part in 2**60
        most = (low + high) / 2
        if len(_filled(work, most)) <= n_devices:
            high = most
        else:
            low = most
    found = _filled(work, high)
    return found + [[] for _ in range(n_devices - len(found))]


def _filled(work, most):
    """Layers in groups of no more work than that."""
    groups: list[list[int]] = [[]]
    total = 0.0
    for layer, each in enumerate(work):
        if groups[-1] and total + each > most:
            groups.append([])
            total = 0.0
        groups[-1].append(layer)
        total += each
    return groups


def layer_flops(config: ModelConfig, choices: Choices, n_tokens: int, n_kv: int) -> list[int]:
    """FLOPs of each layer, and at the end of the output, in a pass with `n_kv` tokens in the cache after it."""
    made = record_pass(config, choices, n_tokens, 1, n_kv)
    found: defaultdict[int, int] = defaultdict(int)
    n_layer = len(config.layers)
    for operation in made.operations:
        match = _OF_LAYER.match(operation.name)
        flops = operation.flops
        if operation.attention is not None:
            sizes = operation.attention
            n_keys = sizes.n_keys(n_kv)
            flops += sizes.flops(n_keys)
            flops += sum(2 * n_keys * _size(weight.shape) for weight in operation.matrices)
        found[int(match[1]) if match else n_layer] += flops
    return [found[index] for index in range(n_layer + 1)]


def _size(shape):
    size = 1
    for length in shape:
        size *= length
    return size
