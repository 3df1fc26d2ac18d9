"""A pass bound to memory: every operation a call without arguments, over arrays whose addresses do not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import attention, devices, ops

from .step import ABSORBED, DECOMPRESSED

if TYPE_CHECKING:
    from lowlevel import AttentionPlan, Pool

    from ..gguf.model_file import ModelFile
    from ..tensor import QuantTensor
    from .buffers import Rows
    from .config import LayerConfig, Rope
    from .kv_cache import LayerCache
    from .step import AttentionSizes, Choices, Pass
    from .tensors import Weight


class Weights:
    """The weights of a model as operations take them, each brought to its form once.

    Parameters
    ----------
    file : ModelFile
    pool : Pool
        Where weights lie that have to be made.
    n_threads : int or None
    """

    def __init__(self, file: ModelFile, pool: Pool, n_threads: int | None) -> None:
        self._file, self._pool, self._n_threads = file, pool, n_threads
        self._tensors: dict[Weight, QuantTensor] = {}
        self._floats: dict[Weight, np.ndarray] = {}

    def tensor(self, weight: Weight) -> QuantTensor:
        """A matrix, or a stack of them."""
        found = self._tensors.get(weight)
        if found is None:
            if weight.is_turned:
                n, rows, columns = weight.shape
                shape = (n, rows, weight.format.row_bytes(columns))
                memory = self._pool.empty(shape, "uint8", tag="weights made")
                found = weight.turn(self._file, memory, self._n_threads)
            else:
                found = weight.of(self._file)
            self._tensors[weight] = found
        return found

    def floats(self, weight: Weight) -> np.ndarray:
        """A vector or table as float32."""
        if weight not in self._floats:
            self._floats[weight] = weight.floats_of(self._file)
        return self._floats[weight]


class State:
    """What changes from pass to pass, read by the calls of all of them.

    Attributes
    ----------
    tokens : numpy.ndarray of int32, (n_tokens,)
    positions : array of int32, (n_ubatch,)
        Of the tokens.
    n_kv : int
        Tokens in the cache before the pass.
    n_total : int
        With those of the pass.
    logits : array of float32, (n_outputs, n_vocab)
    """

    tokens: np.ndarray
    positions: Any
    logits: Any

    def __init__(self, choices: Choices, attention_bytes: int) -> None:
        self.n_kv = self.n_total = 0
        self._choices, self._attention_bytes = choices, attention_bytes
        self._plans: dict[AttentionSizes, tuple[int, AttentionPlan]] = {}

    def plan(self, sizes: AttentionSizes) -> AttentionPlan:
        """The plan of this pass: all layers alike share it."""
        n_keys = sizes.n_keys(self.n_total)
        known = self._plans.get(sizes)
        if known is None or known[0] != n_keys:
            known = n_keys, sizes.plan(n_keys, self._choices, self._attention_bytes)
            self._plans[sizes] = known
        return known[1]


class Bound:
    """A `Pass` on memory: `run` runs it.

    Parameters
    ----------
    made : Pass
    memory : array of uint8
        At least ``made.activation_bytes``.
    scratch : Pool
    weights : Weights
    caches : list of LayerCache
    state : State
    """

    def __init__(
        self,
        made: Pass,
        memory: Any,
        scratch: Pool,
        weights: Weights,
        caches: list[LayerCache],
        state: State,
    ) -> None:
        self.made, self.scratch, self.caches, self.state = made, scratch, caches, state
        self._device = devices.get(scratch.device)
        self._memory, self._weights = memory, weights
        self._ropes: dict[Rope, Any] = {}
        self._arrays = {
            id(b): self._device.view(memory, b.offset, b.shape, np.dtype(b.dtype))
            for b in made.buffers
            if b.offset >= 0
        }
        self._calls = [op.bind(self) for op in made.operations]

    def run(self, clock: dict[str, float] | None = None) -> None:
        """Run every operation in order; into `clock` the seconds of each kind."""
        if clock is None:
            for call in self._calls:
                call()
            return
        for operation, call in zip(self.made.operations, self._calls, strict=True):
            start = time.perf_counter()
            call()
            self._device.synchronise()
            spent = time.perf_counter() - start
            clock[operation.kind] = clock.get(operation.kind, 0.0) + spent

    # ------------------------------------------------------------ what operations ask for

    def array(self, rows: Rows) -> Any:
        """The array of some rows."""
        return rows.array(self._arrays[id(rows.buffer)])

    def weight(self, weight: Weight) -> QuantTensor:
        """A weight as products take it."""
        return self._weights.tensor(weight)

    def floats(self, weight: Weight) -> Any:
        """A vector or table of float32 on the device."""
        return self.to_device(self._weights.floats(weight))

    def host_floats(self, weight: Weight) -> np.ndarray:
        """The same on the host."""
        return self._weights.floats(weight)

    def to_device(self, array: np.ndarray) -> Any:
        """A small constant of the pass."""
        return self._device.from_host(array)

    def frequencies(self, rope: Rope) -> Any:
        """The angles of RoPE."""
        if rope not in self._ropes:
            factors = None if rope.factors is None else self._weights.floats(rope.factors)
            made = ops.rope_frequencies(
                rope.n_rot,
                freq_base=rope.freq_base,
                freq_scale=rope.freq_scale,
                freq_factors=factors,
                ext_factor=rope.ext_factor,
                attn_factor=rope.attn_factor,
                beta_fast=rope.beta_fast,
                beta_slow=rope.beta_slow,
                n_ctx_orig=rope.n_ctx_orig,
            )
            self._ropes[rope] = made.to(self.scratch.device)
        return self._ropes[rope]

    @property
    def tokens(self) -> np.ndarray:
        return self.state.tokens

    @property
    def positions(self) -> Any:
        return self.state.positions

    @property
    def n_kv(self) -> int:
        return self.state.n_kv

    @property
    def logits(self) -> Any:
        return self.state.logits

    def kv_reader(
        self, layer: LayerConfig, sizes: AttentionSizes, form: str | None, turned: bool
    ) -> Callable[[], tuple[Any, Any]]:
        """A function that gives K and V as attention takes them."""
        cache, state = self.caches[layer.index], self.state
        if form == DECOMPRESSED:
            k_b = self.weight(layer.tensors["k_b_turned" if turned else "k_b"])
            v_b = self.weight(layer.tensors["v_b"])

            def decompressed():
                kv = cache.latent(state.n_total, k_b, v_b, turned)
                return kv.k, kv.v

            return decompressed
        if form == ABSORBED:
            return lambda: cache.absorbed(state.n_total)
        return lambda: cache.read(state.n_total, sizes.n_keys(state.n_total))

    def attention(
        self,
        source: Callable[[], tuple[Any, Any]],
        sizes: AttentionSizes,
        q: Any,
        out: Any,
        **options: Any,
    ) -> Callable[[], Any]:
        """A call of attention by the pass's plan."""
        state, scratch = self.state, self.scratch

        def run():
            k, v = source()
            attention(q, k, v, pool=scratch, plan=state.plan(sizes), out=out, **options)

        return run
