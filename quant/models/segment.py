"""A part of a model on its device: its weights, its cache, its memory, and the passes over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import devices

from .context import KeyShares
from .crossing import staging
from .host_experts import HostExperts
from .kv_cache import LayerCache
from .plan import POSITIONS, input_layout
from .runner import Bound, State, Weights, rope_angles
from .taken import Taken

if TYPE_CHECKING:
    from lowlevel import Pool

    from ..gguf.model_file import ModelFile
    from .crossing import Crossing
    from .loading import Loading
    from .model_plan import PlannedPart

# Passes of different sizes that stay bound to memory: the last u-batches of prompts have any size.
KEPT_PASSES = 16


class Segment:
    """A part of a model at work.

    Parameters
    ----------
    planned : PlannedPart
    file : ModelFile
    pools : dict of str to Pool
        Of each device.
    pinned : Taken or None
        Of pinned memory; None where nothing needs any.
    before, after : Crossing or None
        What brings rows, and takes them on.

    Attributes
    ----------
    caches : dict of int to LayerCache
    plans : Planned
    workspace_peak : int
        Bytes of the workspace that passes have used at most so far.
    """

    def __init__(
        self,
        planned: PlannedPart,
        file: ModelFile,
        pools: dict[str, Pool],
        pinned: Any,
        before: Crossing | None,
        after: Crossing | None,
    ) -> None:
        self.part, self.plans, self._host = planned
        self._file, self._pinned = file, pinned
        self.config, self.choices = self.plans.config, self.plans.choices
        self._device = devices.get(self.part.device)
        self.stream = self._device.own_stream()
        self._taken = Taken(pools[self.part.device])
        self._host_taken = Taken(pools["cpu"]) if self._host else None
        self._host_experts: HostExperts | None = None
        self.state = State(self.choices, self.plans.attention_bytes)
        self.state.before, self.state.after = before, after
        divides_keys = self.choices.split == "context"
        self._shares = KeyShares(self.choices.n_ctx, self.choices.ranks) if divides_keys else None
        self.caches: dict[int, LayerCache] = {}
        self._bound: dict[int, Bound] = {}
        self.workspace_peak = 0
        self.waits_on_host = not self._device.has_streams or self._host is not None

    def take_pinned(self) -> None:
        """Memory of the host, before any of the device."""
        state = self.state
        shape, dtype, _ = input_layout(self.choices)
        self._input_staging = staging(self._device, shape, dtype)
        state.embeddings = staging(self._device, (self.choices.n_ubatch, self.config.n_embd))
        ways = [self._input_staging, *([state.embeddings] * self.config.has_input)]
        for way in ways:
            if way.pinned_bytes:
                way.take(self._pinned.empty(way.pinned_bytes, "uint8", tag="staging"))
        if self._host:
            own = Weights(self._file, self._host_taken, self._host.choices.n_threads)
            parts = self.part.device, self._pinned, self._host_taken, own
            state.host_experts = self._host_experts = HostExperts(self._host, *parts)

    def take(self, loading: Loading | None) -> None:
        """All memory, before the first token; inside `stream`.

        Parameters
        ----------
        loading : Loading or None
            What copies weights to devices; None: nothing is copied to any.
        """
        choices, plans, state = self.choices, self.plans, self.state
        taken: Any = self._taken
        upload = loading.to(self._device) if loading and self._device.has_streams else None
        weights = self._weights = Weights(self._file, taken, choices.n_threads, upload)
        matrices, vectors = plans.weights()
        for weight in matrices:
            weights.tensor(weight)
        for weight in vectors:
            weights.floats(weight)
        for layer in self.config.layers:
            sizes = choices.n_cached, choices.n_ubatch, choices.kv_type
            self.caches[layer.index] = LayerCache(layer, *sizes, taken)
        self._workspace = taken.empty(plans.workspace_bytes, "uint8", tag="workspace")
        shape, dtype, _ = input_layout(choices)
        self._inputs = taken.empty(shape, dtype, tag="inputs")
        state.n_keys, state.positions = self._inputs[:1], self._inputs[POSITIONS:]
        for key, (buffer, make) in plans.constants().items():
            array = taken.empty(buffer.shape, buffer.dtype, tag="inputs")
            self._device.upload(array, make().astype(buffer.dtype))
            state.constants[key] = array
        for rope in plans.ropes():
            state.ropes[rope] = rope_angles(rope, weights)
        self._device.synchronise()

    def run(
        self,
        ids: np.ndarray,
        n_kv: int,
        n_outputs: int,
        logits: np.ndarray,
        number: int,
        clock: dict[str, float] | None = None,
    ) -> None:
        """One u-batch: queued, on a device, but for what the host has to do of it.

        Parameters
        ----------
        ids : numpy.ndarray of int32, (n_tokens,)
        n_kv : int
            Tokens in the cache before it.
        n_outputs : int
            The last tokens whose logits are asked for.
        logits : numpy.ndarray of float32, (n_outputs, n_vocab)
            To be written by the part with the output.
        number : int
            Of the u-batch, which crossings go by.
        clock : dict, optional
            Seconds of each kind of operation are added to it.
        """
        n_tokens = len(ids)
        n = n_tokens if self.config.layers else n_outputs
        if not n:
            return
        state = self.state
        state.tokens, state.logits, state.number = ids, logits, number
        state.n_kv, state.n_total = n_kv, n_kv + n_tokens
        if self._shares is not None:
            state.share = self._shares.deal(n_kv, n_tokens)
        with self.stream:
            if self.config.layers:
                self._input_staging.write(self._inputs[: POSITIONS + n], number, self._fill_inputs)
            made = self.plans.of(n, n_outputs, state.n_total)
            bound = self._bound_pass(made)
            bound.run(clock)
        self.workspace_peak = max(self.workspace_peak, bound.peak)

    def _fill_inputs(self, staged):
        state = self.state
        staged[0] = state.n_total
        staged[POSITIONS:] = np.arange(state.n_kv, state.n_total, dtype=np.int32)

    def _bound_pass(self, made):
        bound = self._bound.pop(id(made), None)
        if bound is None:
            if len(self._bound) == KEPT_PASSES:  # the one that was used the longest time ago
                oldest = self._bound.pop(next(iter(self._bound)))
                self.plans.forget(oldest.made)
                oldest.close()
            parts = self._workspace, self.part.device, self._weights, self.caches, self.state
            bound = Bound(made, *parts)
        self._bound[id(made)] = bound
        return bound

    @property
    def compute_peak(self) -> int:
        """Bytes of compute memory that passes have used at most so far, on the device and for experts on the host."""
        return self.workspace_peak + (self._host_experts.peak if self._host_experts else 0)

    def close(self) -> None:
        """Give all memory back."""
        for bound in self._bound.values():
            bound.close()
        self._bound.clear()
        if self._host_experts is not None:
            self._host_experts.close()
        self.caches.clear()
        for name in ("_workspace", "_inputs", "_weights", "state", "_host_experts"):
            self.__dict__.pop(name, None)
        self._taken.free()
        if self._host_taken is not None:
            self._host_taken.free()
