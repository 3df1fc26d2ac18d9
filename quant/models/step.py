"""The plan of one pass: its operations in order, every buffer with its lifetime, and the bytes of it all.

A `Recorder` (recorder.py) makes it, with sizes only. A model binds it to memory (runner.py); ``kqcap plan`` reads its
bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel import plan_attention
from lowlevel.comm import ALONE, Outline
from lowlevel.pool.arena import ALIGNMENT, align_up

from .buffers import place, place_scratch

if TYPE_CHECKING:
    import numpy as np

    from lowlevel import AttentionPlan
    from lowlevel.attention.kv_source import KVType

    from .buffers import Buffer
    from .config import LayerConfig
    from .tensors import Weight

# Forms of latent attention.
DECOMPRESSED, ABSORBED = "decompressed", "absorbed"
MLA = (0, 1, 2, 3, "auto")
# What it costs to make a weight a float, in multiplications and additions.
DECODING = 8


@dataclass(frozen=True)
class Choices:
    """How passes of a model are run: what is the same for all of them.

    Attributes
    ----------
    n_ctx, n_ubatch : int
    amb : int or None
        Most bytes of attention's scratch.
    kv_type : KVType
    mla : int or str
        0: latents are decompressed; 1 and 2: absorbed; 3 and "auto": what takes the fewest FLOPs for a u-batch.
    exact : bool
        Products with float32 activations.
    method : str
        Of attention: "auto" or "steps".
    n_threads : int or None
        On the CPU.
    device : str
    rows, heads : str
        Dtypes of the rows that operations hand on, and of q, k, v and what attention makes of them. The residual
        stream is float32.
    in_token_order : bool
        Whether experts' rows stay in the order of their tokens, and each product sorts them; else they are sorted once.
    group_rows : int or None
        Rows of the feed-forward parts that are worked on at a time; None: as many as take no more memory than attention.
    split : str
        What ranks divide: "" nothing, "tensor" heads and feed-forward columns, "context" keys and those columns.
    ranks : Outline
        This rank, how many there are, and what plans of their transfers go by.
    """

    n_ctx: int
    n_ubatch: int
    kv_type: KVType
    amb: int | None = None
    mla: int | str = "auto"
    exact: bool = False
    method: str = "auto"
    n_threads: int | None = None
    device: str = "cpu"
    rows: str = "float32"
    heads: str = "float32"
    in_token_order: bool = False
    group_rows: int | None = None
    split: str = ""
    ranks: Outline = ALONE

    @property
    def n_cached(self) -> int:
        """Tokens whose rows this rank keeps at most."""
        return -(-self.n_ctx // self.ranks.size) if self.split == "context" else self.n_ctx


class Operation(NamedTuple):
    """One operation of a pass.

    Attributes
    ----------
    kind, name : str
        "product", ...; what it is of: "blk.3.attn_q".
    bind : callable
        (a `runner.Bound`) -> a function without arguments that runs it.
    scratch_bytes : int
        Of the pool, whatever n_kv.
    path : str
        Of a product: the kernels that run, as its plan names them.
    attention : AttentionSizes or None
        What its attention takes beside, which depends on n_kv.
    flops : int
        Multiplications and additions, whatever n_kv.
    weight_bytes : int
        Of the weights that it reads, at most.
    matrices, vectors : tuple of Weight
        What it needs as weights in their blocks, and as float32.
    on_host : bool
        The host works on its rows: no graph can hold it.
    fixed : bool
        It makes the same launches each time, whatever the values: they can be kept.
    staging_bytes : int
        Of the host, where ranks hand one another something by way of it.
    """

    kind: str
    name: str
    bind: Callable[[Any], Callable[[], Any]]
    scratch_bytes: int = 0
    path: str = ""
    attention: AttentionSizes | None = None
    flops: int = 0
    weight_bytes: int = 0
    matrices: tuple[Weight, ...] = ()
    vectors: tuple[Weight, ...] = ()
    on_host: bool = False
    fixed: bool = False
    staging_bytes: int = 0


@dataclass(frozen=True)
class AttentionSizes:
    """One layer's attention but for n_kv, which grows.

    `counted`: so many keys are planned for, and kernels read how many there are when they run; 0: a call says it.
    `n_ranks`: so many share the keys, and each makes a part of the result, of `out_dtype` ("": that of all heads).
    """

    n_head: int
    n_head_kv: int
    n_tokens: int
    d_k: int
    d_v: int
    kv_dtype: tuple[KVType, KVType]
    v_in_k: bool
    window: int
    counted: int = 0
    n_ranks: int = 1
    out_dtype: str = ""

    def n_keys(self, n_kv: int) -> int:
        """Keys that are planned for when there are `n_kv` tokens."""
        if self.counted:
            return self.counted
        n_keys = min(n_kv, self.window - 1 + self.n_tokens) if self.window else n_kv
        return -(-n_keys // self.n_ranks)

    def plan(self, n_keys: int, choices: Choices, budget: int | None) -> AttentionPlan:
        """The plan; BudgetError where `budget` is below the smallest tile."""
        return plan_attention(
            n_head=self.n_head,
            n_head_kv=self.n_head_kv,
            n_tokens=self.n_tokens,
            n_kv=n_keys,
            d_k=self.d_k,
            d_v=self.d_v,
            kv_dtype=self.kv_dtype,
            v_in_k=self.v_in_k and n_keys > 0,  # of no keys, attention cannot see where V lies
            budget=budget,
            method=choices.method,
            n_threads=choices.n_threads,
            device=choices.device,
            q_dtype=choices.heads,
            out_dtype=self.out_dtype or choices.heads,
        )

    def flops(self, n_keys: int) -> int:
        """Of K*Q and of P*V, without what causality leaves out."""
        return 2 * self.n_head * self.n_tokens * n_keys * (self.d_k + self.d_v)


@dataclass
class Pass:
    """The plan of one pass over `n_tokens` tokens.

    Attributes
    ----------
    n_tokens, n_outputs : int
        Tokens that go in, and the last ones whose logits come out.
    operations : list of Operation
    buffers : list of Buffer
    constants : dict
        Of what is the same in every pass, by name and width: (Buffer, a function that makes the ids).
    counted : bool
        Kernels read how many tokens there are when they run: the same launches serve a cache that grows.
    activation_bytes : int
        Of the stretch of memory in which all buffers lie.
    given : dict
        Buffers that lie elsewhere, by name: whoever binds the pass gives their arrays.
    scratch_offsets : list of int
        Where each operation's scratch begins: beside the buffers that live meanwhile, over those that do not.
    """

    n_tokens: int
    n_outputs: int
    choices: Choices
    counted: bool = False
    operations: list[Operation] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    constants: dict[tuple[str, int], tuple[Buffer, Callable[[], np.ndarray]]] = field(
        default_factory=dict
    )
    activation_bytes: int = 0
    given: dict[str, Buffer] = field(default_factory=dict)
    scratch_offsets: list[int] = field(default_factory=list)

    def place(self) -> None:
        """Say where buffers and scratch lie, when all operations are known."""
        self.activation_bytes = place(self.buffers)
        sizes = [
            None if op.attention is not None else align_up(op.scratch_bytes)
            for op in self.operations
        ]
        self.scratch_offsets = place_scratch(self.buffers, sizes)

    @functools.cached_property
    def attention_sizes(self) -> tuple[AttentionSizes, ...]:
        """The kinds of attention that occur, each once."""
        found = (op.attention for op in self.operations if op.attention is not None)
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def fixed_scratch_bytes(self) -> int:
        """The most scratch of an operation other than attention."""
        return max((op.scratch_bytes for op in self.operations), default=0)

    @functools.cached_property
    def fixed_workspace_bytes(self) -> int:
        """Of the stretch in which buffers and scratch lie, but for attention's scratch."""
        pairs = zip(self.operations, self.scratch_offsets, strict=True)
        ends = (offset + align_up(op.scratch_bytes) for op, offset in pairs)
        return max([ALIGNMENT, self.activation_bytes, *ends])  # never empty

    @functools.cached_property
    def attention_offset(self) -> int:
        """Where the scratch of attention begins at the highest; 0 without any."""
        pairs = zip(self.operations, self.scratch_offsets, strict=True)
        return max((offset for op, offset in pairs if op.attention is not None), default=0)

    def workspace_bytes(self, attention_bytes: int) -> int:
        """Of the stretch in which buffers and scratch lie, with so much of attention's."""
        return max(self.fixed_workspace_bytes, self.attention_offset + attention_bytes)

    @functools.cached_property
    def staging_bytes(self) -> int:
        """The most that transfers between ranks take of the host's memory."""
        return max((op.staging_bytes for op in self.operations), default=0)

    def attention_at(self, n_kv: int) -> Iterator[tuple[AttentionSizes, int]]:
        """The kinds of attention, and keys of each, when there are `n_kv` tokens, these included."""
        for each in self.attention_sizes:
            yield each, each.n_keys(n_kv)
            if each.n_ranks > 1:  # a rank may have none of the keys
                yield each, 0

    def attention_bytes(self, n_kv: int, budget: int | None) -> int:
        """Scratch of the attention that takes the most when there are `n_kv` tokens, these included."""
        plans = (each.plan(n, self.choices, budget) for each, n in self.attention_at(n_kv))
        return max((plan.scratch_bytes for plan in plans), default=0)

    def scratch_bytes(self, n_kv: int, budget: int | None = None) -> int:
        """Bytes of scratch at most, of attention within `budget` (None: amb)."""
        budget = self.choices.amb if budget is None else budget
        return max(self.fixed_scratch_bytes, self.attention_bytes(n_kv, budget))

    def to_dict(self, n_kv: int | None = None) -> dict[str, Any]:
        """The plan as plain values; scratch, and attention's path, at `n_kv` tokens, if it is given."""
        data: dict[str, Any] = {
            "n_tokens": self.n_tokens,
            "n_outputs": self.n_outputs,
            "activation_bytes": self.activation_bytes,
            "buffers": [
                {
                    "name": b.name,
                    "shape": list(b.shape),
                    "dtype": str(b.dtype),
                    "bytes": b.n_bytes,
                    "offset": b.offset,
                    "first": b.first,
                    "last": b.last,
                }
                for b in self.buffers
            ],
            "operations": [
                {
                    "kind": op.kind,
                    "name": op.name,
                    "path": self._path(op, n_kv),
                    "scratch_bytes": op.scratch_bytes,
                    "scratch_offset": offset,
                }
                for op, offset in zip(self.operations, self.scratch_offsets, strict=True)
            ],
        }
        if n_kv is not None:
            data["n_kv"] = n_kv
            data["scratch_bytes"] = self.scratch_bytes(n_kv)
            attention_bytes = self.attention_bytes(n_kv, self.choices.amb)
            data["workspace_bytes"] = self.workspace_bytes(attention_bytes)
        return data

    def _path(self, op, n_kv):
        if op.attention is None or n_kv is None:
            return op.path
        return op.attention.plan(op.attention.n_keys(n_kv), self.choices, self.choices.amb).path


def latent_form(layer: LayerConfig, n_tokens: int, n_kv: int, mla: int | str) -> str:
    """Whether `n_tokens` queries over `n_kv` latents take fewer FLOPs absorbed or decompressed, or what `mla` says."""
    if mla == 0:
        return DECOMPRESSED
    if mla in (1, 2):
        return ABSORBED
    return ABSORBED if n_kv > form_changes_at(layer, n_tokens) else DECOMPRESSED


def form_changes_at(layer: LayerConfig, n_tokens: int) -> int:
    """Latents up to which decompressing takes no more FLOPs than absorbing, for so many queries.

    A head takes, in products of two values, ``n_kv rank (d_nope + d_v) + n_tokens n_kv (d_k + d_v)`` decompressed, and
    ``n_tokens n_kv (2 rank + n_rot) + n_tokens rank (d_nope + d_v)`` absorbed. Decompressing makes its weights floats
    first, which counts as much as `DECODING` tokens through them.
    """
    rank, n_rot = layer.kv_lora_rank, layer.rope.n_rot
    turning = rank * (layer.d_nope + layer.d_v)
    saved_a_key = turning + n_tokens * (layer.d_k + layer.d_v - 2 * rank - n_rot)
    if saved_a_key <= 0:
        return 2**62
    return max(0, n_tokens - DECODING) * turning // saved_a_key
