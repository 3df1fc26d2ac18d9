"""Whole models: a file, a prompt, logits; prefill and decode inside a budget that is planned to the byte."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import Pool, devices
from lowlevel.sizes import format_size, parse_size

from ..gguf.model_file import open as open_model
from .config import ModelConfig
from .context import KeyShares
from .kv_cache import LayerCache
from .kv_cache import kv_type as kv_type_named
from .plan import Memory, Planned, check_machine, choose, plan_pass
from .ranks import check_alike, checked_ranks, least_room, run_alone
from .runner import Bound, State, Weights, rope_angles
from .split import split_config
from .step import MLA, Choices
from .taken import Taken

if TYPE_CHECKING:
    from lowlevel.comm import Comm
    from lowlevel.devices import Device
    from lowlevel.sizes import Size

    from ..gguf.model_file import ModelFile
    from .planned_file import PlannedFile
    from .sampling import SamplingParams
    from .step import Pass
    from .tokenizer import Tokenizer

MOST_CONTEXT = 2**31 - 64
DEFAULT_CONTEXT = 16384
# Passes of different sizes that stay bound to memory: the last u-batches of prompts have any size.
KEPT_PASSES = 16
# Dtypes that a cache and attention have in common on devices.
HALVES = ("float16", "bfloat16")


def load(
    path: str | os.PathLike[str],
    device: str = "cpu",
    *,
    n_ctx: int | None = None,
    n_ubatch: int = 2048,
    amb: Size | None = "256MiB",
    kv_type: str = "f16",
    mla: int | str = "auto",
    exact: bool = False,
    method: str = "auto",
    n_threads: int | None = None,
    pool: Pool | None = None,
    comm: Comm | None = None,
    split: str | None = None,
) -> Model:
    """Open a model file, plan its passes, and take all memory that they will need.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file, or any part of a split one.
    device : str
        "cpu".
    n_ctx : int, optional
        Tokens that the cache holds. None: the model's context, at most 16384.
    n_ubatch : int
        Tokens that a pass works on at most.
    amb : int or str, optional
        Most bytes of attention's scratch, K*Q and decompressed K and V. None: no cap.
    kv_type : str
        Of the cache: "f16", "f32", "bf16", "q8_0", "q4_0", "iq4_nl", ...
    mla : {0, 1, 2, 3, "auto"}
        Latent attention: 0 decompressed, 1 and 2 absorbed, 3 and "auto" what takes the fewest FLOPs for a u-batch. The
        cache is one row of latents a token in any case.
    exact : bool
        Products with float32 activations, not with ggml's 8 bits.
    method : {"auto", "steps"}
        Of attention; see `lowlevel.plan_attention`.
    n_threads : int, optional
        None: every CPU of this process.
    pool : lowlevel.Pool, optional
        Caps everything that is taken. Where the best plan does not fit, feed-forward parts go by smaller groups, and
        attention by smaller tiles. None: a pool of just what the best plan takes.
    comm : lowlevel.comm.Comm, optional
        This rank's end of a group. All ranks load the same file and make the same calls, and have the same logits.
    split : {"tensor", "context"}, optional
        What they divide. "tensor": heads of attention, and columns of feed-forward parts and experts; "context": the
        keys in the cache, and those columns.

    Returns
    -------
    Model

    Raises
    ------
    OSError, ModelFileError, ValueError
        The file cannot be read, or not be run; an argument that does not fit. Nothing has been taken.
    lowlevel.BudgetError
        It does not fit `pool`; says what would.
    lowlevel.comm.RankError
        Another rank refuses it.
    """
    return Model(
        path,
        device,
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        amb=amb,
        kv_type=kv_type,
        mla=mla,
        exact=exact,
        method=method,
        n_threads=n_threads,
        pool=pool,
        comm=comm,
        split=split,
    )


class Model:
    """A model on one device; see `load`.

    Attributes
    ----------
    config : ModelConfig
    choices : Choices
    memory : Memory
    n_kv : int
        Tokens in the cache.
    pool : Pool
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu", **options: Any) -> None:
        pool, comm = options.pop("pool"), options["comm"]
        where = devices.get(device)
        together = run_alone if comm is None else comm.together

        def opened():
            if pool is not None and getattr(pool, "device", None) != where.name:
                raise ValueError(f"pool: expected a lowlevel.Pool on {where.name!r}, got {pool!r}")
            self._file = open_model(path)
            return _checked(self._file, where, options)

        def fitted():
            planned, memory = choose(self.config, choices, self._file.n_bytes, room)
            if room is None and where.room == "cpu":
                check_machine(memory)
            return planned, memory

        self.comm = comm
        try:
            self.config, choices = together(opened)
            check_alike(comm, choices)
            room = least_room(pool, comm)
            planned, self.memory = together(fitted)
        except BaseException:
            if "_file" in self.__dict__:
                self._file.close()
            raise
        if choices.n_ctx > self.config.context_length:
            warnings.warn(
                f"n_ctx: {choices.n_ctx} is beyond the model's context of {self.config.context_length}",
                stacklevel=3,
            )
        self.choices = planned.choices
        self._plans = planned
        self._device, self._stream = where, where.own_stream()
        self._own_pool = pool is None
        self._bound: dict[int, Bound] = {}
        self.n_kv = 0
        self.closed = False

        def take():
            self.pool = Pool(self.memory.pool, device=where.name) if pool is None else pool
            self._taken = Taken(self.pool)
            with self._stream:
                self._take()
                where.synchronise()

        try:
            together(take)
        except BaseException:
            self.close()
            raise

    def _take(self):
        """All memory, before the first token."""
        choices, memory, taken = self.choices, self.memory, self._taken
        with self.pool.call("load", planned=memory.pool):
            weights = self._weights = Weights(self._file, taken, choices.n_threads)
            matrices, vectors = self._plans.weights()
            for weight in matrices:
                weights.tensor(weight)
            for weight in vectors:
                weights.floats(weight)
            self._caches = [
                LayerCache(layer, choices.n_cached, choices.n_ubatch, choices.kv_type, taken)
                for layer in self.config.layers
            ]
            self._activations = taken.empty(memory.activations, "uint8", tag="activations")
            scratch = taken.empty(memory.scratch, "uint8", tag="scratch")
            self._state = State(choices, self._plans.attention_bytes)
            self._state.comm = self.comm
            self._shares = KeyShares(choices.n_ctx, choices.ranks)
            if self.comm is not None:
                self.comm.reserve(self._plans.staging_bytes)
            self._state.positions = taken.empty(choices.n_ubatch, "int32", tag="inputs")
            self._state.n_keys = taken.empty(1, "int32", tag="inputs")
            for key, (buffer, make) in self._plans.constants().items():
                array = taken.empty(buffer.shape, buffer.dtype, tag="inputs")
                self._device.upload(array, make().astype(buffer.dtype))
                self._state.constants[key] = array
            if memory.host:
                shape = choices.n_ubatch, self.config.n_embd
                self._state.staged = np.empty(shape, np.float32)
            for rope in self._plans.ropes():
                self._state.ropes[rope] = rope_angles(rope, weights)
        self._scratch = Pool(memory.scratch, device=self.pool.device, memory=scratch)

    # ------------------------------------------------------------ tokens in, logits out

    def prefill(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        all_logits: bool = False,
        out: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
        clock: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Append tokens to the cache.

        Parameters
        ----------
        tokens : sequence of int
            At least one.
        all_logits : bool
            Logits of every one of them, not of the last alone.
        out : numpy.ndarray of float32, optional
            Where logits go: (n_vocab,), or (n_tokens, n_vocab).
        progress : callable, optional
            Called with the tokens done and all after every u-batch.
        clock : dict, optional
            Seconds of each kind of operation are added to it.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array.

        Raises
        ------
        TypeError, ValueError
            Tokens that are none of the vocabulary, or more than the cache has room for: nothing is done.
        KeyboardInterrupt
            The cache holds every whole u-batch before it, as `n_kv` says.
        """
        ids = self._checked_tokens(tokens)
        n, n_vocab = len(ids), self.config.n_vocab
        shape = (n, n_vocab) if all_logits else (n_vocab,)
        logits = np.empty(shape, np.float32) if out is None else _checked_logits(out, shape)
        done = 0
        for size in self._u_batches(n):
            is_last = done + size == n
            n_outputs = size if all_logits else 1 if is_last else 0
            target = logits[done : done + size] if all_logits else logits[None]
            with self._stream:
                self._pass(ids[done : done + size], n_outputs, target, clock)
            done += size
            if progress is not None:
                progress(done, n)
        self._cap(logits)
        return logits

    def decode(self, token: int, *, out: np.ndarray | None = None) -> np.ndarray:
        """Append one token; logits of the next, (n_vocab,). Errors are those of `prefill`."""
        return self.prefill([token], out=out)

    def generate(
        self,
        tokens: Sequence[int] | np.ndarray,
        n: int,
        *,
        sample: SamplingParams | None = None,
        stop: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[int]:
        """Append a prompt, and yield up to `n` tokens that follow it.

        Parameters
        ----------
        tokens : sequence of int
            At least one.
        n : int
        sample : SamplingParams, optional
            None: the likeliest each time.
        stop : sequence of int, optional
            Tokens that end it, and are not yielded. None: those that the file's tokenizer says.
        progress : callable, optional
            Of the prompt; see `prefill`.
        """
        from .sampling import Sampler, SamplingParams

        sampler = Sampler(sample or SamplingParams())
        ends = set(self.tokenizer.eos_ids if stop is None else stop)
        logits = self.prefill(tokens, progress=progress)
        for number in range(n):
            token = int(sampler.sample(logits))
            if self.comm is not None:  # a machine may round otherwise
                token = self.comm.share(token)[0]
            if token in ends:
                return
            yield token
            if number + 1 < n:
                self.decode(token, out=logits)

    def truncate(self, n_kv: int) -> None:
        """Keep the first `n_kv` tokens of the cache only: what follows continues from there.

        Raises
        ------
        ValueError
            More than there are; or rows that a layer with a window has let go are needed again.
        """
        if isinstance(n_kv, bool) or not isinstance(n_kv, (int, np.integer)):
            raise TypeError(f"n_kv: expected an int, got {n_kv!r}")
        if not 0 <= n_kv <= self.n_kv:
            raise ValueError(f"n_kv: expected 0 to {self.n_kv}, the tokens there are; got {n_kv}")
        if n_kv == 0:
            for cache in self._caches:
                cache.clear()
        for layer, cache in zip(self.config.layers, self._caches, strict=True):
            needed = max(0, n_kv - layer.window + 1)
            if layer.window and cache.first_kept() > needed:
                raise ValueError(
                    f"n_kv: the cache of layer {layer.index} has tokens from {cache.first_kept()} on, and its "
                    f"window of {layer.window} would need them from {needed}; 0 starts anew"
                )
        self.n_kv = int(n_kv)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        from .tokenizer import Tokenizer

        return Tokenizer.from_metadata(self._file.metadata)

    @property
    def metadata(self) -> Any:
        """The file's metadata."""
        return self._file.metadata

    @property
    def compute_peak(self) -> int:
        """Bytes of compute memory that passes have really used at most so far."""
        return self._most_activations + self._scratch.peak + self.memory.inputs

    _most_activations = 0

    def plan(self, n_tokens: int, n_kv: int, n_outputs: int = 1) -> Pass:
        """The plan by which a pass over `n_tokens` tokens runs, with `n_kv` in the cache after it."""
        return self._plans.of(n_tokens, n_outputs, n_kv)

    def close(self) -> None:
        """Give all memory back. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for bound in self._bound.values():
            bound.close()
        self._bound.clear()
        scratch = self.__dict__.pop("_scratch", None)
        if scratch is not None:
            scratch.close()
        for name in ("_caches", "_activations", "_state", "_weights"):
            self.__dict__.pop(name, None)
        if "_taken" in self.__dict__:  # else it was refused
            self._taken.free()
            if self._own_pool:
                self.pool.close()
        self._file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.choices
        return (
            f"<Model {self.config.architecture}, {len(self.config.layers)} layers, n_ctx {c.n_ctx}, "
            f"n_ubatch {c.n_ubatch}, {format_size(self.memory.pool)} on {c.device}>"
        )

    # ------------------------------------------------------------ passes

    def _u_batches(self, n):
        """Sizes of passes: whole u-batches, then the rest, in halves where it would take more than was planned."""
        left, most = n, self.choices.n_ubatch
        while left:
            size = min(left, most)
            while size > 1 and not self._plans.fits(size, self.n_kv + size):
                size = -(-size // 2)
            yield size
            left -= size

    def _pass(self, ids, n_outputs, logits, clock):
        state, n = self._state, len(ids)
        state.tokens, state.logits = ids, logits
        state.n_kv, state.n_total = self.n_kv, self.n_kv + n
        if self.choices.split == "context":
            state.share = self._shares.deal(self.n_kv, n)
        positions = np.arange(self.n_kv, self.n_kv + n, dtype=np.int32)
        self._device.upload(state.positions[:n], positions)
        self._device.upload(state.n_keys, np.array([state.n_total], np.int32))
        made = self._plans.of(n, n_outputs, state.n_total)
        self._bound_pass(made).run(clock)
        self._most_activations = max(self._most_activations, made.activation_bytes)
        self.n_kv += n

    def _bound_pass(self, made):
        bound = self._bound.pop(id(made), None)
        if bound is None:
            if len(self._bound) == KEPT_PASSES:  # the one that was used the longest time ago
                oldest = self._bound.pop(next(iter(self._bound)))
                self._plans.forget(oldest.made)
                oldest.close()
            parts = self._activations, self._scratch, self._weights, self._caches, self._state
            bound = Bound(made, *parts)
        self._bound[id(made)] = bound
        return bound

    def _cap(self, logits):
        cap = np.float32(self.config.final_softcap)
        if cap:
            np.divide(logits, cap, out=logits)
            np.tanh(logits, out=logits)
            np.multiply(logits, cap, out=logits)

    def _checked_tokens(self, tokens):
        if self.closed:
            raise ValueError("model: it is closed")
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(
                f"tokens: expected a sequence of at least one id, got shape {ids.shape}"
            )
        if ids.dtype.kind not in "iu":
            raise TypeError(f"tokens: expected integers, got {ids.dtype}")
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.config.n_vocab:
            bad = lowest if lowest < 0 else highest
            raise ValueError(f"tokens: ids are 0 to {self.config.n_vocab - 1}; got {bad}")
        if self.n_kv + len(ids) > self.choices.n_ctx:
            raise ValueError(
                f"tokens: {len(ids)} behind the {self.n_kv} there are do not fit n_ctx "
                f"{self.choices.n_ctx}; truncate, or load with a larger n_ctx"
            )
        return ids.astype(np.int32)


def plan_model(
    file: ModelFile | PlannedFile,
    device: str = "cpu",
    *,
    room: int | None = None,
    passes: dict[Choices, dict] | None = None,
    **options: Any,
) -> tuple[Planned, Memory]:
    """What `load` would take, from a header alone: nothing is taken here.

    Parameters
    ----------
    file : ModelFile or quant.models.planned_file.PlannedFile
        An open file, or one that need not exist.
    device : str
    room : int, optional
        Bytes that it must fit, as `load` fits a pool; None: the best plan.
    passes : dict, optional
        Where passes are kept: those of one file serve many contexts and budgets.
    **options
        As for `load`, without `pool`, with its defaults.

    Raises
    ------
    ValueError, lowlevel.BudgetError
        As `load`.
    """
    parameters = inspect.signature(load).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "pool"
    }
    unknown = options.keys() - defaults.keys()
    if unknown:
        raise TypeError(
            f"options: expected some of {', '.join(defaults)}; got {', '.join(sorted(unknown))}"
        )
    config, choices = _checked(file, devices.get(device), {**defaults, **options})
    return choose(config, choices, file.n_bytes, room, passes)


def _checked(file, where, options):
    """What a file is and how it is run, by checked arguments of `load`."""
    n_ctx = options["n_ctx"]
    if n_ctx is not None:
        _check_tokens("n_ctx", n_ctx)
    config = ModelConfig.from_file(file, n_ctx)
    comm, split = options.pop("comm"), options.pop("split")
    ranks = checked_ranks(comm, split, where)
    choices = dataclasses.replace(
        choices_of(config, where, **options), split=split or "", ranks=ranks
    )
    if split is not None:
        config = split_config(config, split, ranks.rank, ranks.size)
    return config, choices


def choices_of(
    config: ModelConfig,
    where: Device,
    *,
    n_ctx: int | None,
    n_ubatch: int,
    amb: Size | None,
    kv_type: str,
    mla: int | str,
    exact: bool,
    method: str,
    n_threads: int | None,
) -> Choices:
    """How a model is run on a device, by checked arguments of `load`."""
    n_ctx = min(config.context_length, DEFAULT_CONTEXT) if n_ctx is None else n_ctx
    for name, value in (("n_ctx", n_ctx), ("n_ubatch", n_ubatch)):
        _check_tokens(name, value)
    if mla not in MLA or isinstance(mla, bool):
        raise ValueError(f"mla: expected one of {MLA}, got {mla!r}")
    if not isinstance(exact, (bool, np.bool_)):
        raise TypeError(f"exact: expected True or False, got {exact!r}")
    if method not in ("auto", "steps"):
        raise ValueError(f"method: expected 'auto' or 'steps', got {method!r}")
    kind = kv_type_named(kv_type)
    is_host = where.room == "cpu"
    heads = "float32" if is_host else kind.name if kind.name in HALVES else "bfloat16"
    if not is_host and n_threads is not None:
        raise ValueError(f"n_threads: {where.name} has no use for it; leave it out")
    return Choices(
        n_ctx=int(n_ctx),
        n_ubatch=min(int(n_ubatch), int(n_ctx)),
        kv_type=kind,
        amb=None if amb is None else parse_size(amb, "amb"),
        mla=mla,
        exact=bool(exact),
        method=method,
        n_threads=where.resolve_n_threads(n_threads) if is_host else None,
        device=where.name,
        rows="float32" if is_host or exact else "bfloat16",
        heads=heads,
        gathers=not is_host,
    )


def _check_tokens(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if not 1 <= value <= MOST_CONTEXT:
        raise ValueError(f"{name}: expected 1 to {MOST_CONTEXT}, got {value}")


def _checked_logits(out, shape):
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        given = getattr(out, "dtype", type(out).__name__), getattr(out, "shape", "")
        raise ValueError(f"out: expected a NumPy array of float32 of shape {shape}, got {given}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out: must be C-contiguous and writable")
    return out


__all__ = ["Memory", "Model", "Planned", "Taken", "choices_of", "load", "plan_model", "plan_pass"]
