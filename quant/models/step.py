"""The plan of one pass: its operations in order, every buffer with its lifetime, and the bytes of it all.

A `Recorder` is what the blocks in layers.py are written against: each of its methods notes one operation and gives the
rows that it makes. What comes of it, a `Pass`, has sizes only. The model binds it to memory (`quant.models.runner`);
``kqcap plan`` reads its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import ops, plan_attention

from ..embed import embed
from ..matmul import matmul, matmul_scratch_bytes
from .buffers import Buffer, Rows, place
from .kv_cache import latent_types, stores

if TYPE_CHECKING:
    from lowlevel import AttentionPlan
    from lowlevel.attention.kv_source import KVType

    from .config import LayerConfig, ModelConfig, Rope
    from .runner import Bound
    from .tensors import Weight

# Forms of latent attention.
DECOMPRESSED, ABSORBED = "decompressed", "absorbed"
MLA = (0, 1, 2, 3, "auto")


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
    device : str
    group_rows : int or None
        Rows of the feed-forward parts that are worked on at a time; None: as many as take no more memory than attention.
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
    group_rows: int | None = None


class Operation(NamedTuple):
    """One operation of a pass.

    Attributes
    ----------
    kind, name : str
        "product", ...; what it is of: "blk.3.attn_q".
    bind : callable
        (Bound) -> a function without arguments that runs it.
    scratch_bytes : int
        Of the pool, whatever n_kv.
    attention : AttentionSizes or None
        What its attention takes beside, which depends on n_kv.
    flops : int
        Multiplications and additions, whatever n_kv.
    weight_bytes : int
        Of the weights that it reads.
    """

    kind: str
    name: str
    bind: Callable[[Bound], Callable[[], Any]]
    scratch_bytes: int = 0
    attention: AttentionSizes | None = None
    flops: int = 0
    weight_bytes: int = 0


@dataclass(frozen=True)
class AttentionSizes:
    """One layer's attention but for n_kv, which grows."""

    n_head: int
    n_head_kv: int
    n_tokens: int
    d_k: int
    d_v: int
    kv_dtype: tuple[KVType, KVType]
    v_in_k: bool
    window: int

    def n_keys(self, n_kv: int) -> int:
        """Keys that are read when there are `n_kv` tokens."""
        return min(n_kv, self.window - 1 + self.n_tokens) if self.window else n_kv

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
            v_in_k=self.v_in_k,
            budget=budget,
            method=choices.method,
            n_threads=choices.n_threads,
            device=choices.device,
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
    activation_bytes : int
        Of the stretch of memory in which all buffers lie.
    """

    n_tokens: int
    n_outputs: int
    choices: Choices
    operations: list[Operation] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    activation_bytes: int = 0

    @functools.cached_property
    def attention_sizes(self) -> tuple[AttentionSizes, ...]:
        """The kinds of attention that occur, each once."""
        found = (op.attention for op in self.operations if op.attention is not None)
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def fixed_scratch_bytes(self) -> int:
        """The most scratch of an operation other than attention."""
        return max((op.scratch_bytes for op in self.operations), default=0)

    def attention_bytes(self, n_kv: int, budget: int | None) -> int:
        """Scratch of the attention that takes the most when there are `n_kv` tokens, these included."""
        return max(
            (
                each.plan(each.n_keys(n_kv), self.choices, budget).scratch_bytes
                for each in self.attention_sizes
            ),
            default=0,
        )

    def scratch_bytes(self, n_kv: int, budget: int | None = None) -> int:
        """Bytes of scratch at most, of attention within `budget` (None: amb)."""
        budget = self.choices.amb if budget is None else budget
        return max(self.fixed_scratch_bytes, self.attention_bytes(n_kv, budget))

    def to_dict(self, n_kv: int | None = None) -> dict[str, Any]:
        """The plan as plain values; scratch at `n_kv` tokens, if it is given."""
        data: dict[str, Any] = {
            "n_tokens": self.n_tokens,
            "n_outputs": self.n_outputs,
            "activation_bytes": self.activation_bytes,
            "buffers": [
                {
                    "name": b.name,
                    "shape": list(b.shape),
                    "dtype": b.dtype,
                    "bytes": b.n_bytes,
                    "offset": b.offset,
                    "first": b.first,
                    "last": b.last,
                }
                for b in self.buffers
            ],
            "operations": [
                {"kind": op.kind, "name": op.name, "scratch_bytes": op.scratch_bytes}
                for op in self.operations
            ],
        }
        if n_kv is not None:
            data["n_kv"] = n_kv
            data["scratch_bytes"] = self.scratch_bytes(n_kv)
            data["compute_bytes"] = self.activation_bytes + data["scratch_bytes"]
        return data


class Recorder:
    """Notes the operations of one pass; see layers.py for how they make a model.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    n_tokens, n_outputs : int
    """

    def __init__(
        self, config: ModelConfig, choices: Choices, n_tokens: int, n_outputs: int
    ) -> None:
        self.config, self.choices = config, choices
        self.made = Pass(n_tokens, n_outputs, choices)
        self._scope = ""

    def finish(self) -> Pass:
        """The pass, its buffers placed."""
        self.made.activation_bytes = place(self.made.buffers)
        return self.made

    def scope(self, name: str) -> None:
        """What later operations are of: "blk.3"."""
        self._scope = name

    def new(self, name: str, n: int, columns: int, dtype: str = "float32") -> Rows:
        """A buffer of rows; it lives from the first operation that writes it to the last that reads it."""
        buffer = Buffer(f"{self._scope}.{name}" if self._scope else name, (n, columns), dtype)
        self.made.buffers.append(buffer)
        return Rows(buffer, (n, columns))

    def note(
        self,
        kind: str,
        name: str,
        rows: tuple[Rows, ...],
        bind: Callable[[Bound], Callable[[], Any]],
        **facts: Any,
    ) -> None:
        """One more operation, on some rows."""
        number = len(self.made.operations)
        for each in rows:
            each.buffer.touch(number)
        full_name = f"{self._scope}.{name}" if self._scope else name
        self.made.operations.append(Operation(kind, full_name, bind, **facts))

    # ------------------------------------------------------------ operations on rows

    def embed(self, table: Weight) -> Rows:
        """The embeddings of the tokens."""
        out = self.new("residual", self.made.n_tokens, self.config.n_embd)
        scale, n_threads = self.config.embedding_scale, self.choices.n_threads

        def bind(bound):
            rows, weight = bound.array(out), bound.weight(table)

            def run():
                embed(weight, bound.tokens, rows, n_threads=n_threads)
                if scale != 1.0:
                    ops.scale(rows, scale, n_threads=n_threads)

            return run

        self.note("embed", "token_embd", (out,), bind)
        return out

    def rms_norm(self, x: Rows, weight: Weight | None, out: Rows | None = None) -> Rows:
        """`lowlevel.ops.rms_norm` of rows, to a buffer of their own or to `out`."""
        name = weight.name.split(".")[-2] if weight else "norm"
        if out is None:
            out = self.new(name, x.shape[0], x.shape[1])
        target, eps, n_threads = out, self.config.eps, self.choices.n_threads

        def bind(bound):
            norm = bound.floats(weight) if weight else None
            return functools.partial(
                ops.rms_norm,
                bound.array(x),
                norm,
                eps=eps,
                out=bound.array(target),
                n_threads=n_threads,
            )

        self.note("norm", name, (x, out), bind)
        return out

    def product(
        self,
        x: Rows,
        weights: Weight | tuple[Weight, ...],
        *,
        bias: Weight | None = None,
        out: Rows | None = None,
        name: str = "",
    ) -> Rows:
        """``x @ weight.T + bias``; products with several weights stand side by side."""
        parts = weights if isinstance(weights, tuple) else (weights,)
        name = name or parts[0].name.split(".")[-2]
        if out is None:
            out = self.new(name, x.shape[0], sum(part.shape[0] for part in parts))
        at = 0
        for part in parts:
            target = out.columns(at, at + part.shape[0]) if len(parts) > 1 else out
            self._one_product(x, part, target, part.name.split(".")[-2])
            at += part.shape[0]
        if bias is not None:
            self.add_vector(out, bias)
        return out

    def _one_product(self, x, weight, out, name):
        exact, n_threads = self.choices.exact, self.choices.n_threads
        n = x.shape[0]

        def bind(bound):
            return functools.partial(
                matmul,
                bound.array(x),
                bound.weight(weight),
                pool=bound.scratch,
                out=bound.array(out),
                exact=exact,
                n_threads=n_threads,
            )

        self.note(
            "product",
            name,
            (x, out),
            bind,
            scratch_bytes=self._matmul_scratch(n, weight),
            flops=2 * n * int(np.prod(weight.shape, dtype=np.int64)),
            weight_bytes=weight.n_bytes,
        )

    def _matmul_scratch(self, n, weight):
        return matmul_scratch_bytes(
            n,
            weight.outline,
            exact=self.choices.exact,
            n_threads=self.choices.n_threads,
            device=self.choices.device,
        )

    def head_product(self, x: Rows, weight: Weight, out: Rows, n_head: int, name: str) -> None:
        """Each head's rows times its own matrix: x (n_tokens n_head, columns), weight (n_head, rows, columns)."""
        exact, n_threads = self.choices.exact, self.choices.n_threads
        n = x.shape[0]

        def bind(bound):
            heads = np.tile(np.arange(n_head, dtype=np.int32), n // n_head)
            return functools.partial(
                matmul,
                bound.array(x),
                bound.weight(weight),
                pool=bound.scratch,
                out=bound.array(out),
                experts=bound.to_device(heads),
                exact=exact,
                n_threads=n_threads,
            )

        self.note(
            "product",
            name,
            (x, out),
            bind,
            scratch_bytes=self._matmul_scratch(n, weight),
            flops=2 * n * weight.shape[1] * weight.shape[2],
            weight_bytes=weight.n_bytes,
        )

    def add(self, x: Rows, y: Rows) -> None:
        """``x += y``"""
        n_threads = self.choices.n_threads

        def bind(bound):
            return functools.partial(ops.add, bound.array(x), bound.array(y), n_threads=n_threads)

        self.note("add", "residual", (x, y), bind)

    def add_vector(self, x: Rows, bias: Weight, experts: Rows | None = None) -> None:
        """A bias to every row, or to each row its expert's."""
        n_threads = self.choices.n_threads

        def bind(bound):
            ids = None if experts is None else bound.array(experts)[:, 0]
            return functools.partial(
                ops.add,
                bound.array(x),
                bound.floats(bias),
                row_ids=ids,
                n_threads=n_threads,
            )

        rows = (x,) if experts is None else (x, experts)
        self.note("add", bias.name.split(".")[-2] + "_bias", rows, bind)

    def copy(self, x: Rows, out: Rows, name: str) -> None:
        """The same values in other rows."""
        n_threads = self.choices.n_threads

        def bind(bound):
            return functools.partial(
                ops.cast, bound.array(x), bound.array(out), n_threads=n_threads
            )

        self.note("copy", name, (x, out), bind)

    def rope(self, x: Rows, rope: Rope, offset: int = 0, name: str = "q") -> None:
        """Turn heads, (n_head, n, d), of the last n tokens by their positions, in place."""
        n_threads, n_tokens = self.choices.n_threads, self.made.n_tokens

        def bind(bound):
            return functools.partial(
                ops.rope,
                bound.array(x),
                bound.positions[n_tokens - x.shape[1] : n_tokens],
                bound.frequencies(rope),
                pairs=rope.pairs,
                offset=offset,
                n_threads=n_threads,
            )

        self.note("rope", f"rope_{name}", (x,), bind)

    def gated(self, gate: Rows, up: Rows) -> None:
        """The gated activation of this architecture, over `gate`."""
        call, n_threads = getattr(ops, self.config.traits.activation), self.choices.n_threads

        def bind(bound):
            return functools.partial(call, bound.array(gate), bound.array(up), n_threads=n_threads)

        self.note("gated", self.config.traits.activation, (gate, up), bind)

    # ------------------------------------------------------------ attention

    def store(self, layer: LayerConfig, *rows: Rows) -> None:
        """New rows, (heads, n_tokens, d), to the layer's cache."""
        n_threads, n_tokens = self.choices.n_threads, rows[0].shape[1]
        kept = stores(layer, self.choices.n_ctx, self.choices.n_ubatch, self.choices.kv_type)

        def bind(bound):
            cache, arrays = bound.caches[layer.index], tuple(bound.array(x) for x in rows)

            def run():
                cache.make_room(bound.n_kv, n_tokens)
                cache.write(arrays, bound.n_kv, bound.scratch, n_threads)

            return run

        scratch = max(store.staging_bytes(n_tokens) for store in kept)
        self.note("store", "kv_cache", rows, bind, scratch_bytes=scratch)

    def attend(self, layer: LayerConfig, q: Rows, out: Rows, form: str | None = None) -> None:
        """Attention of q, (n_head, n_tokens, d_k), over the layer's cache, to out, (n_head, n_tokens, d_v)."""
        kind, turned = self.choices.kv_type, "k_b_turned" in layer.tensors
        types = (kind, kind)
        if form == DECOMPRESSED:
            turned = "k_b" not in layer.tensors
            types = latent_types(layer, kind, turned)
        sizes = AttentionSizes(
            n_head=layer.n_head,
            n_head_kv=layer.n_head_kv if form is None else 1 if form == ABSORBED else layer.n_head,
            n_tokens=q.shape[1],
            d_k=q.shape[2],
            d_v=out.shape[2],
            kv_dtype=types,
            v_in_k=form == ABSORBED,
            window=layer.window,
        )
        sinks = layer.tensors.get("attn_sinks.weight")

        def bind(bound):
            source = bound.kv_reader(layer, sizes, form, turned)
            return bound.attention(
                source,
                sizes,
                bound.array(q),
                bound.array(out),
                scale=layer.scale,
                window=layer.window or None,
                softcap=layer.softcap or None,
                sinks=None if sinks is None else bound.host_floats(sinks),
            )

        self.note("attention", "attention", (q, out), bind, attention=sizes)

    # ------------------------------------------------------------ experts

    def route(self, layer: LayerConfig, logits: Rows) -> tuple[Rows, Rows]:
        """Experts of each token and their weights: (n_tokens, n_expert_used) of int32 and float32."""
        routing, n = layer.routing, logits.shape[0]
        assert routing is not None
        ids = self.new("expert_ids", n, routing.n_expert_used, "int32")
        weights = self.new("expert_weights", n, routing.n_expert_used)
        bias, n_threads = layer.tensors.get("exp_probs_b.bias"), self.choices.n_threads

        def bind(bound):
            return functools.partial(
                ops.top_k_routing,
                bound.array(logits),
                bound.array(ids),
                bound.array(weights),
                gating=routing.gating,
                bias=None if bias is None else bound.floats(bias),
                n_group=routing.n_group,
                n_group_used=routing.n_group_used,
                normalise=routing.normalise,
                scale=routing.scale,
                n_threads=n_threads,
            )

        self.note("routing", "top_k", (logits, ids, weights), bind)
        return ids, weights

    def by_expert(self, ids: Rows, weights: Rows) -> tuple[Rows, Rows, Rows]:
        """Each choice of each token a row, sorted by expert: its token, its expert, its weight."""
        n = ids.shape[0] * ids.shape[1]
        tokens = self.new("row_tokens", n, 1, "int32")
        experts = self.new("row_experts", n, 1, "int32")
        sorted_weights = self.new("row_weights", n, 1)

        def bind(bound):
            outs = [bound.array(each)[:, 0] for each in (tokens, experts, sorted_weights)]
            return functools.partial(
                ops.sort_by_expert, bound.array(ids), bound.array(weights), *outs
            )

        self.note("routing", "by_expert", (ids, weights, tokens, experts, sorted_weights), bind)
        return tokens, experts, sorted_weights

    def expert_product(
        self, x: Rows, weight: Weight, out: Rows, experts: Rows, tokens: Rows | None = None
    ) -> None:
        """Row i of out: ``x[tokens[i]] @ weight[experts[i]].T``; without tokens ``x[i]``."""
        exact, n_threads = self.choices.exact, self.choices.n_threads
        n = out.shape[0]

        def bind(bound):
            return functools.partial(
                matmul,
                bound.array(x),
                bound.weight(weight),
                pool=bound.scratch,
                out=bound.array(out),
                experts=bound.array(experts)[:, 0],
                x_rows=None if tokens is None else bound.array(tokens)[:, 0],
                exact=exact,
                n_threads=n_threads,
            )

        rows = (x, out, experts) if tokens is None else (x, out, experts, tokens)
        self.note(
            "experts",
            weight.name.split(".")[-2],
            rows,
            bind,
            scratch_bytes=self._matmul_scratch(n, weight),
            flops=2 * n * weight.shape[1] * weight.shape[2],
            weight_bytes=weight.n_bytes * min(weight.shape[0], n) // weight.shape[0],  # at most
        )

    def scatter_add(self, rows: Rows, out: Rows, tokens: Rows, weights: Rows) -> None:
        """``out[tokens[i]] += weights[i] * rows[i]``"""
        n_threads = self.choices.n_threads
        plan = ops.plan_scatter_add(rows.shape[0], out.shape[0], device=self.choices.device)

        def bind(bound):
            return functools.partial(
                ops.scatter_add,
                bound.array(rows),
                bound.array(out),
                tokens=bound.array(tokens)[:, 0],
                weights=bound.array(weights)[:, 0],
                pool=bound.scratch,
                n_threads=n_threads,
            )

        self.note(
            "experts",
            "scatter_add",
            (rows, out, tokens, weights),
            bind,
            scratch_bytes=plan.scratch_bytes,
        )

    # ------------------------------------------------------------ output

    def logits(self, x: Rows, weight: Weight) -> None:
        """``x @ weight.T`` to where the caller of the pass wants logits: (n_outputs, n_vocab)."""
        exact, n_threads = self.choices.exact, self.choices.n_threads

        def bind(bound):
            rows, table = bound.array(x), bound.weight(weight)

            def run():
                matmul(
                    rows,
                    table,
                    pool=bound.scratch,
                    out=bound.logits,
                    exact=exact,
                    n_threads=n_threads,
                )

            return run

        self.note(
            "output",
            "output",
            (x,),
            bind,
            scratch_bytes=self._matmul_scratch(x.shape[0], weight),
            flops=2 * x.shape[0] * int(np.prod(weight.shape, dtype=np.int64)),
            weight_bytes=weight.n_bytes,
        )


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
    ``n_tokens n_kv (2 rank + n_rot) + n_tokens rank (d_nope + d_v)`` absorbed.
    """
    rank, n_rot = layer.kv_lora_rank, layer.rope.n_rot
    turning = rank * (layer.d_nope + layer.d_v)
    saved_a_key = turning + n_tokens * (layer.d_k + layer.d_v - 2 * rank - n_rot)
    return n_tokens * turning // saved_a_key if saved_a_key > 0 else 2**62
