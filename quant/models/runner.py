"""A pass bound to memory: every operation a call without arguments, over arrays whose addresses do not change."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import Pool, attention, devices, ops
from lowlevel.pool.arena import align_up

from ..tensor import QuantTensor
from .step import ABSORBED, DECOMPRESSED

if TYPE_CHECKING:
    from lowlevel import AttentionPlan
    from lowlevel.comm import Comm

    from ..gguf.model_file import ModelFile
    from .buffers import Rows
    from .config import LayerConfig, Rope
    from .context import Share
    from .kv_cache import LayerCache
    from .step import AttentionSizes, Choices, Pass
    from .tensors import Weight


class Weights:
    """The weights of a model as operations take them, each brought to its device and form once.

    On the CPU tensors stay where the file is mapped; elsewhere they are copied to the pool.

    Parameters
    ----------
    file : ModelFile
    pool : object
        With `empty` and `device`: where weights lie that are copied or made.
    n_threads : int or None
    upload : callable, optional
        How weights get to the device: (array there, array); None: all of one at once.
    """

    def __init__(
        self,
        file: ModelFile,
        pool: Any,
        n_threads: int | None,
        upload: Callable[[Any, np.ndarray], None] | None = None,
    ) -> None:
        self._file, self._pool, self._n_threads = file, pool, n_threads
        self._device = devices.get(pool.device)
        self._upload = upload or self._device.upload
        self._whole: dict[tuple, QuantTensor] = {}
        self._tensors: dict[Weight, QuantTensor] = {}
        self._floats: dict[Weight, Any] = {}

    def tensor(self, weight: Weight) -> QuantTensor:
        """A matrix, or a stack of them."""
        found = self._tensors.get(weight)
        if found is None:
            found = self._turned(weight) if weight.is_turned else weight.view(self.whole(weight))
            self._tensors[weight] = found
        return found

    def whole(self, weight: Weight) -> QuantTensor:
        """The tensor of the file that a weight is a view of, or this rank's share of it."""
        key = weight.name, weight.share
        if key not in self._whole:
            tensor = weight.shared(self._file)
            data = self.on_device(tensor.data, "weights", self._upload)
            if data is not tensor.data:
                tensor = QuantTensor(data, tensor.format, tensor.shape)
            self._whole[key] = tensor
        return self._whole[key]

    def _turned(self, weight):
        n, rows, columns = weight.shape
        shape = n, rows, weight.format.row_bytes(columns)
        memory = self._pool.empty(shape, "uint8", tag="weights made")
        self._upload(memory, weight.turn(self._file, self._n_threads))
        return QuantTensor(memory, weight.format, weight.shape)

    def host_tensor(self, weight: Weight) -> QuantTensor:
        """A matrix where the file is mapped."""
        return weight.view(weight.shared(self._file))

    def host_floats(self, weight: Weight) -> np.ndarray:
        """A vector or table as float32 on the host."""
        return weight.floats_of(self._file)

    def floats(self, weight: Weight) -> Any:
        """The same on the device."""
        if weight not in self._floats:
            values = weight.floats_of(self._file)
            self._floats[weight] = self.on_device(values, "weights", self._upload)
        return self._floats[weight]

    def on_device(
        self,
        array: np.ndarray,
        tag: str,
        upload: Callable[[Any, np.ndarray], None] | None = None,
    ) -> Any:
        """An array in the pool, on the CPU itself."""
        if self._device.address(array) is not None:
            return array
        memory = self._pool.empty(array.shape, array.dtype.name, tag=tag)
        (upload or self._device.upload)(memory, array)
        return memory


class State:
    """What changes from pass to pass, read by the calls of all of them.

    Attributes
    ----------
    tokens : numpy.ndarray of int32, (n_tokens,)
    positions : array of int32, (n_ubatch,)
        Of the tokens.
    n_keys : array of int32, (1,)
        `n_total`, on the device.
    n_kv : int
        Tokens in the cache before the pass.
    n_total : int
        With those of the pass.
    logits : numpy.ndarray of float32, (n_outputs, n_vocab)
        On the host, to be written.
    number : int
        Of the u-batch.
    embeddings : InPlace or PinnedSlots
        Where the host writes embeddings, on their way to a device.
    before, after : Crossing or None
        What brings rows from the part of the model before this one, and takes them to the one behind.
    host_experts : HostExperts or None
        What works on experts on the CPU.
    comm : Comm or None
        This rank's end of a group.
    share : Share or None
        Where ranks divide the keys: what of this pass is this rank's.
    ropes, constants : dict
        Angles by `Rope`; arrays by what `Pass.constants` calls them.
    """

    tokens: np.ndarray
    positions: Any
    n_keys: Any
    logits: Any
    embeddings: Any
    before: Any = None
    after: Any = None
    host_experts: Any = None
    comm: Comm | None = None
    share: Share | None = None

    def __init__(self, choices: Choices, attention_bytes: int) -> None:
        self.n_kv = self.n_total = self.number = 0
        self.ropes: dict[Rope, Any] = {}
        self.constants: dict[tuple[str, int], Any] = {}
        self._choices, self._attention_bytes = choices, attention_bytes
        self._plans: dict[AttentionSizes, tuple[int, AttentionPlan]] = {}

    def plan(self, sizes: AttentionSizes, n_keys: int | None = None) -> AttentionPlan:
        """The plan of this pass, or for so many keys: all layers alike share it."""
        n_keys = sizes.n_keys(self.n_total) if n_keys is None else n_keys
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
        The workspace: at least ``made.workspace_bytes``.
    device : str
        Where it lies.
    weights : Weights
    caches : dict of int to LayerCache
        By the index of their layer.
    state : State
    given : dict, optional
        Arrays of ``made.given`` by name.

    Attributes
    ----------
    scratch : Pool
        Of the operation that is bound just now; there is none at any other time.
    """

    scratch: Pool

    def __init__(
        self,
        made: Pass,
        memory: Any,
        device: str,
        weights: Weights,
        caches: dict[int, LayerCache],
        state: State,
        given: dict[str, Any] | None = None,
    ) -> None:
        self.made, self.caches, self.state = made, caches, state
        self._device = devices.get(device)
        self._pools: dict[tuple[int, int], Pool] = {}  # by where they begin and end
        self._memory, self._weights = memory, weights
        self._parts: list[Bound] = []
        self._arrays = {
            id(b): self._device.view(memory, b.offset, b.shape, b.dtype)
            for b in made.buffers
            if b.offset >= 0
        }
        for key, (buffer, _) in made.constants.items():
            self._arrays[id(buffer)] = state.constants[key]
        for name, buffer in made.given.items():
            self._arrays[id(buffer)] = (given or {})[name]
        pairs = zip(made.operations, made.scratch_offsets, strict=True)
        self._calls = [self._bind(op, offset) for op, offset in pairs]
        self._replay: Callable[[], None] | None = None
        self._is_kept = False

    def _bind(self, operation, offset):
        is_attention = operation.attention is not None  # which has the rest
        end = len(self._memory) if is_attention else offset + align_up(operation.scratch_bytes)
        if (offset, end) not in self._pools:
            memory = self._memory[offset:end] if offset < end else self._memory
            pool = Pool(end - offset, device=self._device.name, memory=memory)
            self._pools[offset, end] = pool
        self.scratch = self._pools[offset, end]
        call = operation.bind(self)
        del self.scratch  # what a call needs of it, it has by now
        return call

    @property
    def peak(self) -> int:
        """Bytes of the workspace that have been used at most so far."""
        ends = (start + pool.peak for (start, _), pool in self._pools.items() if pool.peak)
        return max(self.made.activation_bytes, *ends, 0)

    def run(self, clock: dict[str, float] | None = None) -> None:
        """Run every operation in order; into `clock` the seconds of each kind."""
        if clock is not None:
            self._timed(clock)
        elif self._replay is not None:
            self._replay()
        elif self._is_kept:  # kernels are loaded now, which no capture may do
            self._replay = self._capturing_run()
        else:
            self._first_run()

    def _first_run(self):
        """Every call with its checks; what it launches is kept where that is the same each time."""
        keep = self._device.keep
        pairs = zip(self.made.operations, self._calls, strict=True)
        kept = [keep(call) if op.fixed else _once(call) for op, call in pairs]
        self._calls, self._is_kept = kept, True

    def _timed(self, clock):
        for operation, call in zip(self.made.operations, self._calls, strict=True):
            start = time.perf_counter()
            call()
            self._device.synchronise()
            spent = time.perf_counter() - start
            clock[operation.kind] = clock.get(operation.kind, 0.0) + spent

    def _capturing_run(self):
        """Run every operation, and give what runs them again: those in a row that launch the same each time by one graph.

        A pass of a size that comes once only is not captured, which takes as long as to run it.
        """
        parts = []
        pairs = zip(self.made.operations, self._calls, strict=True)
        for same, group in itertools.groupby(pairs, lambda pair: self._is_same(pair[0])):
            calls = [call for _, call in group]
            made = [self._device.capture(functools.partial(_all, calls))] if same else calls
            for part in made:
                part()
            parts += made
        return functools.partial(_all, parts)

    def _is_same(self, operation):
        """Whether an operation queues the same launches each time."""
        return not operation.on_host and (operation.fixed or self.made.counted)

    def close(self) -> None:
        """Let go of all memory: the calls hold this object, which a reference count alone would never end."""
        self._replay = None
        for part in self._parts:
            part.close()
        self._parts.clear()
        self._calls.clear()
        self._arrays.clear()
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._memory = None

    # ------------------------------------------------------------ what operations ask for

    def array(self, rows: Rows) -> Any:
        """The array of some rows."""
        return rows.array(self._arrays[id(rows.buffer)])

    def weight(self, weight: Weight) -> QuantTensor:
        """A weight as products take it."""
        return self._weights.tensor(weight)

    def host_weight(self, weight: Weight) -> QuantTensor:
        """A weight where the file is mapped."""
        return self._weights.host_tensor(weight)

    def host_worker(self, layer: LayerConfig, out: Any) -> Callable[[], Any]:
        """What has the CPU work on a layer's experts."""
        part, work = self.state.host_experts.worker(layer, out)
        self._parts.append(part)
        return work

    def floats(self, weight: Weight) -> Any:
        """A vector or table of float32 on the device."""
        return self._weights.floats(weight)

    def host_floats(self, weight: Weight) -> np.ndarray:
        """The same on the host."""
        return self._weights.host_floats(weight)

    def frequencies(self, rope: Rope) -> Any:
        """The angles of RoPE."""
        return self.state.ropes[rope]

    def give_logits(self, rows: Any, start: int) -> None:
        """Logits of some outputs, to the host."""
        self._device.download(rows, self.state.logits[start : start + len(rows)])

    @property
    def comm(self) -> Comm:
        """This rank's end of its group."""
        assert self.state.comm is not None
        return self.state.comm

    @property
    def share(self) -> Share | None:
        return self.state.share

    @property
    def tokens(self) -> np.ndarray:
        return self.state.tokens

    @property
    def positions(self) -> Any:
        return self.state.positions

    @property
    def n_kv(self) -> int:
        return self.state.n_kv

    def kv_reader(
        self, layer: LayerConfig, sizes: AttentionSizes, form: str | None, turned: bool
    ) -> Callable[[int], tuple[Any, Any]]:
        """A function that gives K and V of so many tokens as attention takes them."""
        cache = self.caches[layer.index]
        if sizes.counted:
            whole = (
                cache.absorbed(sizes.counted) if form else cache.read(sizes.counted, sizes.counted)
            )
            return lambda n_kv: whole
        if form == DECOMPRESSED:
            k_b = self.weight(layer.tensors["k_b_turned" if turned else "k_b"])
            v_b = self.weight(layer.tensors["v_b"])

            def decompressed(n_kv):
                kv = cache.latent(n_kv, k_b, v_b, turned)
                return kv.k, kv.v

            return decompressed
        if form == ABSORBED:
            return cache.absorbed
        if sizes.n_ranks > 1:
            return lambda n_kv: cache.read(n_kv, n_kv)
        return lambda n_kv: cache.read(n_kv, sizes.n_keys(n_kv))

    def store_by_position(self, layer: LayerConfig, rows: tuple[Any, ...]) -> Callable[[], Any]:
        """New rows to where their positions say: the same call however full the cache is."""
        choices, n = self.made.choices, self.made.n_tokens
        n_ctx, n_threads = choices.n_ctx, choices.n_threads
        targets = self.caches[layer.index].read(n_ctx, n_ctx)
        positions = self.state.positions[:n]

        def run():
            for x, target in zip(rows, targets, strict=True):
                ops.put_rows(x, positions, target, n_threads=n_threads)

        return run

    def attention(
        self,
        source: Callable[[int], tuple[Any, Any]],
        sizes: AttentionSizes,
        q: Any,
        out: Any,
        **options: Any,
    ) -> Callable[[], Any]:
        """A call of attention by the pass's plan."""
        state, scratch, keep = self.state, self.scratch, self._device.keep_attention
        if sizes.counted:
            options["n_kv"] = state.n_keys
        again: Callable[[Any, Any, Any], bool] | None = None

        def run():
            nonlocal again
            k, v = source(state.n_total)
            plan = state.plan(sizes)
            if again is None or not again(plan, k, v):
                call = functools.partial(
                    attention, q, k, v, pool=scratch, plan=plan, out=out, **options
                )
                again = keep(call)

        return run

    def partial_attention(
        self,
        source: Callable[[int], tuple[Any, Any]],
        sizes: AttentionSizes,
        q: Any,
        out: Any,
        lse: Any,
        **options: Any,
    ) -> Callable[[], Any]:
        """Attention over this rank's keys: its part of the result, and the logarithms of its sums."""
        state, scratch, n_tokens = self.state, self.scratch, self.made.n_tokens

        def run():
            assert state.share is not None
            for part in state.share.segments(n_tokens, sizes.n_tokens):
                rows = slice(part.start, part.stop)
                k, v = source(part.n_keys)
                of_part = dataclasses.replace(sizes, n_tokens=part.stop - part.start)
                plan = state.plan(of_part, part.n_keys)
                here = dict(out=out[:, rows], lse=lse[:, rows], causal=part.causal, plan=plan)
                attention(q[:, rows], k, v, pool=scratch, **here, **options)

        return run


def rope_angles(rope: Rope, weights: Weights) -> ops.RopeFrequencies:
    """The angles of one kind of layers, in the pool of its weights."""
    factors = None if rope.factors is None else weights.host_floats(rope.factors)
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
    return ops.RopeFrequencies(weights.on_device(made.turns, "rope"), made.magnitude)


def _once(call):
    call()
    return call


def _all(calls):
    for call in calls:
        call()
