"""Whole models: a file, a prompt, logits; prefill and decode inside a budget that is planned to the byte."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import Pool, devices
from lowlevel.sizes import format_size

from ..gguf.model_file import open as open_model
from .choices import DEFAULT_CONTEXT, choices_of
from .loading import Loading, loading_bytes
from .memory import Memory
from .model_plan import ModelPlan, plan_parts
from .pipeline import UBatch, run_pipeline
from .placement import CPU, device_names
from .plan import Room, plan_pass
from .planning import checked_pools, prepare, rooms_of
from .ranks import RankCrossing, check_alike, least_rooms, run_alone
from .segment import KEPT_PASSES, Segment
from .taken import Taken

if TYPE_CHECKING:
    from lowlevel.comm import Comm
    from lowlevel.sizes import Size

    from ..gguf.model_file import ModelFile
    from .planned_file import PlannedFile
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer


def load(
    path: str | os.PathLike[str],
    device: str | Sequence[str] = "cpu",
    *,
    n_ctx: int | None = None,
    n_ubatch: int = 2048,
    amb: Size | None = "256MiB",
    kv_type: str = "f16",
    mla: int | str = "auto",
    exact: bool = False,
    method: str = "auto",
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    tensor_split: Sequence[float] | None = None,
    cpu_moe: bool | int = False,
    place: Sequence[tuple[str, str]] = (),
    pool: Pool | Sequence[Pool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    comm: Comm | None = None,
    split: str | None = None,
) -> Model:
    """Open a model file, plan its passes, and take all memory that they will need.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file, or any part of a split one.
    device : str or sequence of str
        "cpu", "cuda:N"; several, such as ["cuda:0", "cuda:1"], take whole layers in this order.
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
        Of what runs on the CPU. None: every CPU of this process.
    n_gpu_layers : int, optional
        As llama.cpp's: the last so many layers are on `device`, and, where it is more than there are layers, the output
        too; the others on the CPU. None: all.
    tensor_split : sequence of float, optional
        As llama.cpp's: a number for each device, in proportion to which layers (and the output, as one more) go there.
        None: by the memory that the devices have free, evenly where that is not known.
    cpu_moe : bool or int
        The routed experts of all layers, or of the first so many, are worked on by the CPU, from the mapped file; the
        rest of these layers stays where it is. Rows cross through pinned memory; shared experts run meanwhile.
    place : sequence of (str, str)
        As llama.cpp's -ot: (regular expression, device), the first that a tensor's name contains says where it lies.
        What lies together goes together: a layer's experts (to the CPU), all else of a layer, the output with its norm.
    pool : lowlevel.Pool, or a sequence of them, optional
        Caps everything that is taken on its device. Where the best plan does not fit, feed-forward parts go by smaller
        groups, and attention by smaller tiles. None: a pool of just what the best plan takes.
    progress : callable, optional
        Called with the bytes of weights that have been copied to devices, and all there are.
    comm : lowlevel.comm.Comm, optional
        This rank's end of a group. All ranks load the same file and make the same calls, and have the same logits.
    split : {"layer", "tensor", "context"}, optional
        What they divide. "layer": whole layers (by `tensor_split`, a number a rank); "tensor": heads of attention, and
        columns of feed-forward parts and experts; "context": the keys in the cache, and those columns.

    Returns
    -------
    Model

    Raises
    ------
    OSError, ModelFileError, ValueError
        The file cannot be read, or not be run; an argument that does not fit. Nothing has been taken.
    lowlevel.BudgetError
        It does not fit `pool`, or what a device has free; says which, and what would.
    lowlevel.comm.RankError
        Another rank refuses it.

    Notes
    -----
    Logits of layers split over devices of one kind are the single device's, bit for bit. Those of a CPU and a device
    differ by what their activations are rounded to: 8 bits in products on both sides (unless `exact`), bfloat16 rows on
    the device.
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
        n_gpu_layers=n_gpu_layers,
        tensor_split=tensor_split,
        cpu_moe=cpu_moe,
        place=place,
        pool=pool,
        progress=progress,
        comm=comm,
        split=split,
    )


class Model:
    """A model on its devices; see `load`.

    Attributes
    ----------
    config : ModelConfig
    choices : Choices
        Of the first device that is not the CPU, or of the CPU.
    memory : Memory
        Of all devices together.
    memory_of : dict of str to Memory
        Of each device; pinned memory of the host for rows between two devices is in `memory` alone.
    parts : tuple of Part
        What lies where, in the order of a pass.
    n_kv : int
        Tokens in the cache.
    pools : dict of str to Pool
        Of each device.
    pool : Pool
        Of the device that `choices` is of.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str | Sequence[str] = "cpu",
        **options: Any,
    ) -> None:
        pool, progress = options.pop("pool"), options.pop("progress")
        self.comm = comm = options["comm"]
        together = run_alone if comm is None else comm.together

        def opened():
            names = device_names(device)
            given = checked_pools(pool, names)
            self._file = open_model(path)
            rooms = rooms_of(names, given)
            return given, rooms, prepare(self._file, names, rooms, options)

        try:
            given, rooms, prepared = together(opened)
            check_alike(comm, prepared.first, prepared.config, self._file)
            if prepared.first.split != "layer":
                rooms = least_rooms(rooms, comm)
            n_bytes = self._file.n_bytes
            self._plans = together(lambda: plan_parts(*prepared, n_bytes=n_bytes, rooms=rooms))
        except BaseException:
            if "_file" in self.__dict__:
                self._file.close()
            raise
        self.config = prepared.config
        self.choices, self.memory = self._plans.choices, self._plans.memory
        self.memory_of = self._plans.by_device
        self.parts = tuple(each.part for each in self._plans.parts)
        if self.choices.n_ctx > self.config.context_length:
            warnings.warn(
                f"n_ctx: {self.choices.n_ctx} is beyond the model's context of {self.config.context_length}",
                stacklevel=3,
            )
        self.n_kv = self._n_batches = 0
        self.closed = False
        self.pools: dict[str, Pool] = {}
        self._own_pools: list[Pool] = []
        self._segments: list[Segment] = []
        self._pinned: Taken | None = None

        def take():
            for name, memory in self.memory_of.items():
                self.pools[name] = given.get(name) or self._own(Pool(memory.pool, device=name))
            self._take(progress)

        try:
            together(take)
        except BaseException:
            self.close()
            raise
        self.pool = self.pools[self.choices.device]

    def _own(self, pool):
        self._own_pools.append(pool)
        return pool

    def _take(self, progress):
        """All memory, before the first token."""
        plans = self._plans
        if self.comm is not None:
            self.comm.reserve(plans.rank_bytes)
        n_bytes = self.memory.host - plans.rank_bytes
        if n_bytes:
            queued = (devices.get(part.device) for part in self.parts)
            source = next(each for each in queued if each.has_streams)
            memory = source.pinned(n_bytes)
            self._pinned = Taken(self._own(Pool(n_bytes, device=CPU, memory=memory)))
        crossings = plans.crossings
        for crossing in crossings:
            memory = self._pinned.empty(crossing.pinned_bytes, "uint8", tag="crossing")
            crossing.take(memory)
        first = None if self.parts[0].has_input else RankCrossing(self.comm)
        last = None if self.parts[-1].has_output else RankCrossing(self.comm)
        ends = zip([first, *crossings], [*crossings, last], strict=True)
        for planned, (before, after) in zip(plans.parts, ends, strict=True):
            parts = planned, self._file, self.pools, self._pinned, before, after
            self._segments.append(Segment(*parts))
            self._segments[-1].state.comm = self.comm
        for segment in self._segments:
            segment.take_pinned()
        total, loading, chunks = plans.loaded_bytes, None, None
        if total:
            chunks = Taken(self._pinned.pool)
            memory = chunks.empty(loading_bytes(total), "uint8", tag="loading")
            loading = Loading(total, memory, progress)
        try:
            for segment in self._segments:
                pool = self.pools[segment.part.device]
                with segment.stream, pool.call("load", planned=self.memory_of[pool.device].pool):
                    segment.take(loading)
        finally:
            if chunks is not None:
                chunks.free()

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
        rows = logits if all_logits else logits[None]
        self._run(self._batches(ids, all_logits, rows), clock, progress)
        if self.choices.split == "layer":
            # The last rank has them; ranks of one process get them by reference.
            own = logits.copy() if self.parts[-1].has_output else None
            logits[...] = self.comm.share(own)[-1]
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
            for _, cache in self._caches():
                cache.clear()
        for layer, cache in self._caches():
            if self._has_lost(layer, cache, n_kv):
                raise ValueError(
                    f"n_kv: the cache of layer {layer.index} has tokens from {cache.first_kept()} on, and its "
                    f"window of {layer.window} would need them from {n_kv - layer.window + 1}; 0 starts anew"
                )
        self.n_kv = int(n_kv)

    def _caches(self):
        """(layer, its cache) of all layers."""
        return [
            (layer, segment.caches[layer.index])
            for segment in self._segments
            for layer in segment.config.layers
        ]

    @staticmethod
    def _has_lost(layer, cache, n_kv):
        """Whether a cache has let rows go that tokens from `n_kv` on would need."""
        return bool(layer.window) and cache.first_kept() > max(0, n_kv - layer.window + 1)

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
    def n_threads(self) -> int | None:
        """Threads of what runs on the CPU; None: nothing does."""
        hosts = (each.host for each in self._plans.parts if each.host is not None)
        plans = [*(each.planned for each in self._plans.parts), *hosts]
        return next((each.choices.n_threads for each in plans if each.choices.n_threads), None)

    @property
    def compute_peak(self) -> int:
        """Bytes of compute memory that passes have really used at most so far."""
        return sum(segment.compute_peak for segment in self._segments) + self.memory.inputs

    def plan(self, n_tokens: int, n_kv: int, n_outputs: int = 1) -> Any:
        """The plan by which a pass over `n_tokens` tokens runs, with `n_kv` in the cache after it: a `Pass`.

        Over several devices a tuple of them, one of each part that has something to do.
        """
        passes = self._plans.of(n_tokens, n_outputs, n_kv)
        return passes[0] if len(self.parts) == 1 else tuple(passes)

    def close(self) -> None:
        """Give all memory back. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        if self._pinned is not None:
            self._pinned.free()
        for pool in self._own_pools:
            pool.close()
        self._file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.choices
        where = ", ".join(f"{format_size(m.pool)} on {name}" for name, m in self.memory_of.items())
        return (
            f"<Model {self.config.architecture}, {len(self.config.layers)} layers, n_ctx {c.n_ctx}, "
            f"n_ubatch {c.n_ubatch}, {where}>"
        )

    # ------------------------------------------------------------ passes

    def _batches(self, ids, all_logits, logits):
        """Passes: whole u-batches, then the rest, in halves where it would take more than was planned."""
        n, done, found = len(ids), 0, []
        while done < n:
            size = min(n - done, self.choices.n_ubatch)
            n_kv = self.n_kv + done
            while size > 1 and not self._fits(size, n_kv + size):
                size = -(-size // 2)
            n_outputs = size if all_logits else int(done + size == n)
            target = logits[done : done + size] if all_logits else logits
            number = self._n_batches + len(found)
            found.append(UBatch(ids[done : done + size], n_kv, n_outputs, target, number))
            done += size
        return found

    def _fits(self, n_tokens, n_kv):
        fits = self._plans.fits(n_tokens, n_kv)
        return all(self.comm.share(fits)) if self.choices.split == "layer" else fits

    def _run(self, batches, clock=None, progress=None):
        n_before = self.n_kv
        n = sum(len(batch.ids) for batch in batches)
        self._n_batches += len(batches)
        try:
            for batch in run_pipeline(self._segments, batches, clock):
                self.n_kv = batch.n_kv + len(batch.ids)
                if progress is not None:
                    progress(self.n_kv - n_before, n)
        except BaseException:
            # The first parts may be ahead, and have let go what the next token would need.
            if len(self._segments) > 1 and any(
                self._has_lost(*pair, self.n_kv) for pair in self._caches()
            ):
                self.truncate(0)
            raise

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
    device: str | Sequence[str] = "cpu",
    *,
    room: int | None = None,
    passes: dict[Any, dict] | None = None,
    **options: Any,
) -> tuple[ModelPlan, Memory]:
    """What `load` would take, from a header alone: nothing is taken here.

    Parameters
    ----------
    file : ModelFile or quant.models.planned_file.PlannedFile
        An open file, or one that need not exist.
    device : str or sequence of str
    room : int, optional
        Bytes of each device that it must fit, as `load` fits a pool; None: the best plan.
    passes : dict, optional
        Where passes are kept: those of one file serve many contexts and budgets.
    **options
        As `load` takes them, without `pool` and `progress`; all of them have `load`'s defaults.

    Raises
    ------
    ValueError, lowlevel.BudgetError
        As `load`.
    """
    parameters = inspect.signature(load).parameters.values()
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in ("pool", "progress")
    }
    unknown = options.keys() - defaults.keys()
    if unknown:
        raise TypeError(
            f"options: expected some of {', '.join(defaults)}; got {', '.join(sorted(unknown))}"
        )
    names = device_names(device)
    rooms = {} if room is None else {name: Room(room, name) for name in names}
    prepared = prepare(file, names, rooms, {**defaults, **options})
    plans = plan_parts(*prepared, n_bytes=file.n_bytes, rooms=rooms, passes=passes)
    return plans, plans.memory


def _checked_logits(out, shape):
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        given = getattr(out, "dtype", type(out).__name__), getattr(out, "shape", "")
        raise ValueError(f"out: expected a NumPy array of float32 of shape {shape}, got {given}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out: must be C-contiguous and writable")
    return out


__all__ = [
    "DEFAULT_CONTEXT",
    "KEPT_PASSES",
    "Memory",
    "Model",
    "ModelPlan",
    "Taken",
    "choices_of",
    "load",
    "plan_model",
    "plan_pass",
]
