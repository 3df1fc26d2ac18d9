"""Routed experts on the CPU, for layers whose rest is on a device: from the mapped file, by the kernels of the CPU.

The device hands over the rows before the experts, h, with each token's choice of experts, through pinned memory, and goes
on with the shared experts; the host waits for that copy alone, works, and queues the sum's way back. So a layer is one
meeting of both, and nothing else of the device's is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowlevel import devices
from lowlevel.pool.arena import align_up
from lowlevel.shapes import array_layout

from .crossing import moment_of, wait_on_host
from .layers import record_experts
from .memory import Memory, some_sizes
from .runner import Bound, State

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from .config import LayerConfig, ModelConfig
    from .runner import Weights
    from .step import Choices, Pass


def exchange_layouts(config: ModelConfig, n_ubatch: int) -> dict[str, tuple]:
    """Name to (shape, dtype, bytes) of what a device and the host hand one another; none without such layers."""
    routings = [x.routing for x in config.layers if x.experts_on_host and x.routing is not None]
    if not routings:
        return {}
    n_used = max(routing.n_expert_used for routing in routings)
    rows, choice = (n_ubatch, config.n_embd), (n_ubatch, n_used)
    kinds = {"h": (rows, "float32"), "y": (rows, "float32"), "ids": (choice, "int32")}
    kinds["weights"] = choice, "float32"
    return {name: array_layout(*kind) for name, kind in kinds.items()}


def exchange_bytes(config: ModelConfig, n_ubatch: int) -> int:
    """Of pinned memory."""
    return sum(align_up(layout[2]) for layout in exchange_layouts(config, n_ubatch).values())


class PlannedHost:
    """What the CPU takes for the experts of a device's layers.

    Parameters
    ----------
    config : ModelConfig
        Of the part of the model that is on the device.
    choices : Choices
        Of the CPU.
    """

    def __init__(self, config: ModelConfig, choices: Choices) -> None:
        self.config, self.choices = config, choices
        layers = [layer for layer in config.layers if layer.experts_on_host]
        self._kinds = list({layer.kind: layer for layer in layers}.values())
        self._layers = layers
        self._fitting: dict[int, bool] = {}
        made = [
            record_experts(config, choices, layer, n)
            for layer in self._kinds
            for n in some_sizes(choices.n_ubatch)
        ]
        self.activation_bytes = max(each.activation_bytes for each in made)
        self.scratch_bytes = max(each.fixed_scratch_bytes for each in made)
        self.workspace_bytes = max(each.fixed_workspace_bytes for each in made)

    def of(self, layer: LayerConfig, n_tokens: int) -> Pass:
        """The pass of one layer's experts."""
        return record_experts(self.config, self.choices, layer, n_tokens)

    def fits(self, n_tokens: int) -> bool:
        """Whether passes of a size take no more than was planned."""
        if n_tokens not in self._fitting:
            made = [self.of(layer, n_tokens) for layer in self._kinds]
            self._fitting[n_tokens] = all(
                each.fixed_workspace_bytes <= self.workspace_bytes for each in made
            )
        return self._fitting[n_tokens]

    def memory(self) -> Memory:
        """Bytes on the CPU."""
        files = {
            layer.tensors[name].name: layer.tensors[name].whole_bytes
            for layer in self._layers
            for name in layer.tensors
            if "_exps." in name
        }
        return Memory(
            weights=sum(files.values()),
            activations=self.activation_bytes,
            scratch=self.scratch_bytes,
            workspace=self.workspace_bytes,
        )


class HostExperts:
    """The experts of a device's layers at work: what `State.host_experts` is.

    Parameters
    ----------
    planned : PlannedHost
    device : str
        Of the layers' rest.
    pinned, taken : object
        With `empty`: pinned memory, and the CPU's.
    weights : Weights
        Of the CPU.

    Attributes
    ----------
    peak : int
        Bytes of compute memory that passes have used at most so far.
    """

    def __init__(
        self, planned: PlannedHost, device: str, pinned: Any, taken: Any, weights: Weights
    ) -> None:
        self._planned, self._device, self._weights = planned, devices.get(device), weights
        layouts = exchange_layouts(planned.config, planned.choices.n_ubatch)
        self._exchange = {
            name: pinned.empty(shape, dtype, tag="experts on the host")
            for name, (shape, dtype, _) in layouts.items()
        }
        self._memory = taken.empty(planned.workspace_bytes, "uint8", tag="workspace")
        self._state = State(planned.choices, 0)
        self._sent: Any = None
        self.peak = 0

    def sender(self, *arrays: Any) -> Callable[[], None]:
        """What queues the copies of h, ids, weights, as far as these go."""
        targets = []
        for name, array in zip(("h", "ids", "weights"), arrays, strict=True):
            whole = self._exchange[name].reshape(-1)
            targets.append(whole[: array.size].reshape(array.shape))
        pairs = list(zip(arrays, targets, strict=True))

        def send():
            for array, target in pairs:
                self._device.copy_out(array, target)
            self._sent = moment_of(self._device, self._sent)

        return send

    def worker(self, layer: LayerConfig, out: Any) -> tuple[Bound, Callable[[], None]]:
        """The bound pass, and what waits for the copies, runs it, and queues the way of the sum to `out`."""
        n = len(out)
        made = self._planned.of(layer, n)
        given = {}
        for name, buffer in made.given.items():
            whole = self._exchange[name].reshape(-1)
            size = buffer.shape[0] * buffer.shape[1]
            given[name] = whole[:size].reshape(buffer.shape)
        bound = Bound(made, self._memory, "cpu", self._weights, {}, self._state, given)
        total: np.ndarray = given["y"]

        def work():
            wait_on_host(self._sent)
            bound.run()
            self.peak = max(self.peak, bound.peak)
            self._device.upload(out, total)

        return bound, work

    def close(self) -> None:
        """Let go of all memory."""
        self._exchange.clear()
        self._memory = None
