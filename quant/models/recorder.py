"""What the blocks in layers.py are written against: each method notes one operation, and gives the rows that it makes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import ops

from ..embed import embed
from ..matmul import matmul, matmul_plan
from .buffers import Buffer, Rows
from .context import own_rows
from .expert_operations import ExpertOperations
from .kv_cache import latent_types, stores
from .rank_operations import RankOperations
from .step import ABSORBED, DECOMPRESSED, AttentionSizes, Operation, Pass
from .tensors import of_one_format

if TYPE_CHECKING:
    from lowlevel.attention.kv_source import KVType

    from .config import LayerConfig, ModelConfig, Rope
    from .runner import Bound
    from .step import Choices
    from .tensors import Weight


class Recorder(ExpertOperations, RankOperations):
    """Notes the operations of one pass; see layers.py for how they make a model.

    Parameters
    ----------
    config : ModelConfig
    choices : Choices
    n_tokens, n_outputs : int
    counted : bool
        See `Pass`.
    """

    def __init__(
        self,
        config: ModelConfig,
        choices: Choices,
        n_tokens: int,
        n_outputs: int,
        counted: bool = False,
    ) -> None:
        self.config, self.choices = config, choices
        self.made = Pass(n_tokens, n_outputs, choices, counted)
        self._scope = ""
        self._constants: dict[tuple[str, int], Buffer] = {}
        self._added: tuple[int, Rows, Rows] | None = None  # the last addition: its number, x and y

    def finish(self) -> Pass:
        """The pass, its buffers placed."""
        self.made.place()
        return self.made

    def scope(self, name: str) -> None:
        """What later operations are of: "blk.3"."""
        self._scope = name

    def new(self, name: str, n: int, columns: int, dtype: str | None = None) -> Rows:
        """A buffer of rows; it lives from the first operation that writes it to the last that reads it."""
        full_name = f"{self._scope}.{name}" if self._scope else name
        buffer = Buffer(full_name, (n, columns), dtype or self.choices.rows)
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
        """The embeddings of the tokens: rows of a table that stays on the host."""
        out = self.new("residual", self.made.n_tokens, self.config.n_embd, "float32")
        scale, n_threads = self.config.embedding_scale, self.choices.n_threads

        def bind(bound):
            rows, weight = bound.array(out), bound.host_weight(table)

            def run():
                bound.state.embeddings.write(
                    rows,
                    bound.state.number,
                    lambda staged: embed(weight, bound.tokens, staged, n_threads=n_threads),
                )
                if scale != 1.0:
                    ops.scale(rows, scale, n_threads=n_threads)

            return run

        self.note("embed", "token_embd", (out,), bind, on_host=True)
        return out

    def given(self, name: str, n: int, columns: int, dtype: str = "float32") -> Rows:
        """Rows that lie elsewhere."""
        buffer = self.made.given[name] = Buffer(name, (n, columns), dtype)
        return Rows(buffer, (n, columns))

    def clear(self, out: Rows) -> None:
        """Zeros; of the host's memory."""

        def bind(bound):
            return functools.partial(bound.array(out).fill, 0)

        self.note("experts", "clear", (out,), bind)

    # ------------------------------------------------------------ rows that cross; see crossing.py

    def receive_rows(self) -> Rows:
        """The residual stream of the part before."""
        out = self.new("residual", self.made.n_tokens, self.config.n_embd, "float32")

        def bind(bound):
            rows, state = bound.array(out), bound.state
            return lambda: state.before.receive(rows, state.number)

        staging = self.crossing_bytes("receive", out)
        self.note("cross", "receive", (out,), bind, on_host=True, staging_bytes=staging)
        return out

    def send_rows(self, x: Rows) -> None:
        """The residual stream to the part behind."""

        def bind(bound):
            rows, state = bound.array(x), bound.state
            return lambda: state.after.send(rows, state.number)

        staging = self.crossing_bytes("send", x)
        self.note("cross", "send", (x,), bind, on_host=True, staging_bytes=staging)

    def hand_to_host(self, layer: LayerConfig, h: Rows, ids: Rows, weights: Rows) -> None:
        """What the CPU needs for a layer's routed experts; it begins when `take_from_host` runs."""

        def bind(bound):
            return bound.state.host_experts.sender(*map(bound.array, (h, ids, weights)))

        self.note("cross", "experts_out", (h, ids, weights), bind, on_host=True)

    def take_from_host(self, layer: LayerConfig, n: int) -> Rows:
        """The sum of each token's experts, by the CPU: (n, n_embd) of float32."""
        out = self.new("experts_sum", n, self.config.n_embd, "float32")

        def bind(bound):
            return bound.host_worker(layer, bound.array(out))

        self.note("experts", "on_host", (out,), bind, on_host=True)
        return out

    # ------------------------------------------------------------ norms, products

    def rms_norm(
        self, x: Rows, weight: Weight, out: Rows | None = None, dtype: str | None = None
    ) -> Rows:
        """`lowlevel.ops.rms_norm` of rows, to a buffer of their own or to `out`."""
        name = weight.stem
        if out is None:
            out = self.new(name, x.shape[0], x.shape[1], dtype)
        target, eps, n_threads = out, self.config.eps, self.choices.n_threads
        addends = None if out is x else self._addends_of(x)

        def bind(bound):
            return functools.partial(
                ops.rms_norm,
                bound.array(x),
                bound.floats(weight),
                add=None if addends is None else bound.array(addends),
                eps=eps,
                out=bound.array(target),
                n_threads=n_threads,
            )

        touched = tuple(each for each in (x, addends, out) if each is not None)
        self.note("norm", name, touched, bind, vectors=(weight,), fixed=True)
        return out

    def _addends_of(self, x):
        """What the last operation adds to x, which is then no operation of its own; None where it does something else."""
        number = len(self.made.operations) - 1
        if self._added is None or self._added[:2] != (number, x):
            return None
        self.made.operations.pop()
        return self._added[2]

    def product(
        self,
        x: Rows,
        weights: Weight | tuple[Weight, ...],
        *,
        bias: Weight | None = None,
        name: str = "",
        dtype: str | None = None,
    ) -> Rows:
        """``x @ weight.T + bias``; products with several weights stand side by side."""
        parts = weights if isinstance(weights, tuple) else (weights,)
        name = name or parts[0].stem
        out = self.new(name, x.shape[0], sum(part.shape[0] for part in parts), dtype)
        at = 0
        for together in of_one_format(parts):
            target = out.columns(at, at + sum(part.shape[0] for part in together))
            self._product(x, together, target, "+".join(part.stem for part in together))
            for part in together:
                if part.factor != 1.0:
                    self._scale(out.columns(at, at + part.shape[0]), part)
                at += part.shape[0]
        if bias is not None:
            self.add_vector(out, bias)
        return out

    def _scale(self, x, weight):
        """The factor of a weight, which its products lack."""
        if x.buffer.dtype == "float16":
            raise ValueError(
                f"tensor {weight.name!r} has a factor beside it ({weight.factor:g}), and products without it may be "
                f"beyond float16, which rows are on {self.choices.device}; it runs with device='cpu'"
            )
        n_threads = self.choices.n_threads

        def bind(bound):
            return functools.partial(ops.scale, bound.array(x), weight.factor, n_threads=n_threads)

        self.note("scale", weight.stem + "_scale", (x,), bind, fixed=True)

    def _product(
        self, x, weights, out, name, kind="product", experts=None, x_rows=None, matrices=None
    ):
        """One call of `quant.matmul`, with one matrix or several of one format.

        `matrices`: what a model has to bring for it, where that is not just `weights`.
        """
        exact, n_threads = self.choices.exact, self.choices.n_threads
        n = out.shape[0]

        def bind(bound):
            tensors = [bound.weight(weight) for weight in weights]
            return functools.partial(
                matmul,
                bound.array(x),
                tensors[0] if len(tensors) == 1 else tensors,
                pool=bound.scratch,
                out=bound.array(out),
                experts=None if experts is None else bound.array(experts),
                x_rows=None if x_rows is None else bound.array(x_rows),
                exact=exact,
                n_threads=n_threads,
            )

        n_matrices = weights[0].shape[0] if experts is not None else 1
        n_bytes = sum(weight.n_bytes for weight in weights)
        plan = self._matmul_plan(n, weights)
        self.note(
            kind,
            name,
            tuple(rows for rows in (x, out, experts, x_rows) if rows is not None),
            bind,
            scratch_bytes=plan.scratch_bytes,
            path=plan.path,
            flops=2 * n * out.shape[1] * x.shape[1],
            weight_bytes=n_bytes * min(n_matrices, n) // n_matrices,
            matrices=tuple(matrices or weights),
            fixed=True,
        )

    def _matmul_plan(self, n, weights):
        outlines = [weight.outline for weight in weights]
        return matmul_plan(
            n,
            outlines if len(outlines) > 1 else outlines[0],
            exact=self.choices.exact,
            n_threads=self.choices.n_threads,
            device=self.choices.device,
        )

    def head_product(self, x: Rows, weight: Weight, out: Rows, n_head: int) -> None:
        """Each head's rows times its own matrix: x (n_tokens n_head, columns), weight (n_head, rows, columns)."""
        heads = self.constant("head_ids", lambda n: np.tile(np.arange(n_head), n), n_head)
        self._product(x, (weight,), out, weight.stem, experts=heads.rows(0, x.shape[0]))

    def constant(self, name: str, make: Callable[[int], np.ndarray], per_token: int) -> Rows:
        """Ids of int32, (n_tokens per_token,), that are the same in every pass: the beginning of ``make(n_ubatch)``."""
        key = name, per_token
        if key not in self._constants:
            n = self.choices.n_ubatch
            self._constants[key] = Buffer(f"{name} {per_token}", (n * per_token,), "int32")
            self.made.constants[key] = self._constants[key], functools.partial(make, n)
        return Rows(self._constants[key], self._constants[key].shape)

    def add(self, x: Rows, y: Rows) -> None:
        """``x += y``; where a norm of x follows, it does both."""
        n_threads = self.choices.n_threads

        def bind(bound):
            return functools.partial(ops.add, bound.array(x), bound.array(y), n_threads=n_threads)

        self._added = len(self.made.operations), x, y
        self.note("add", "residual", (x, y), bind, fixed=True)

    def add_vector(self, x: Rows, bias: Weight, experts: Rows | None = None) -> None:
        """A bias to every row, or to each row its expert's."""
        n_threads = self.choices.n_threads

        def bind(bound):
            ids = None if experts is None else bound.array(experts)
            return functools.partial(
                ops.add,
                bound.array(x),
                bound.floats(bias),
                row_ids=ids,
                n_threads=n_threads,
            )

        rows = (x,) if experts is None else (x, experts)
        self.note("add", bias.stem + "_bias", rows, bind, vectors=(bias,), fixed=True)

    def copy(self, x: Rows, out: Rows, name: str) -> None:
        """The same values in other rows."""
        n_threads = self.choices.n_threads

        def bind(bound):
            return functools.partial(
                ops.cast, bound.array(x), bound.array(out), n_threads=n_threads
            )

        self.note("copy", name, (x, out), bind, fixed=True)

    def narrowed(self, x: Rows) -> Rows:
        """Rows in the dtype that operations hand on."""
        if x.buffer.dtype == self.choices.rows:
            return x
        out = self.new(x.buffer.name.split(".")[-1], x.shape[0], x.shape[1])
        self.copy(x, out, "narrowed")
        return out

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

        self.note("rope", f"rope_{name}", (x,), bind, fixed=True)

    def gated(self, gate: Rows, up: Rows) -> None:
        """The gated activation of this architecture, over `gate`."""
        call, n_threads = getattr(ops, self.config.traits.activation), self.choices.n_threads

        def bind(bound):
            return functools.partial(call, bound.array(gate), bound.array(up), n_threads=n_threads)

        self.note("gated", self.config.traits.activation, (gate, up), bind, fixed=True)

    # ------------------------------------------------------------ attention

    def store(self, layer: LayerConfig, *rows: Rows) -> None:
        """New rows, (heads, n_tokens, d), to the layer's cache."""
        n_threads, n_tokens = self.choices.n_threads, rows[0].shape[1]
        kept = stores(layer, self.choices.n_cached, self.choices.n_ubatch, self.choices.kv_type)
        # Where rows are dense and none are moved, positions say which they are.
        divides_keys = self.choices.split == "context"
        by_position = not layer.window and all(store.is_dense for store in kept)
        by_position = by_position and not divides_keys
        assert by_position or not self.made.counted

        def bind(bound):
            if by_position:
                return bound.store_by_position(layer, tuple(bound.array(x) for x in rows))
            cache, arrays = bound.caches[layer.index], tuple(bound.array(x) for x in rows)
            scratch = bound.scratch

            def run():
                new, at = own_rows(bound.share, arrays, bound.n_kv)
                if new[0].shape[1]:
                    cache.make_room(at, new[0].shape[1])
                    cache.write(new, at, scratch, n_threads)

            return run

        n_bytes = max(store.staging_bytes(n_tokens) for store in kept)
        self.note("store", "kv_cache", rows, bind, scratch_bytes=n_bytes, fixed=by_position)

    def attend(self, layer: LayerConfig, q: Rows, out: Rows, form: str | None = None) -> None:
        """Attention of q, (n_head, n_tokens, d_k), over the layer's cache, to out, (n_head, n_tokens, d_v)."""
        kind, turned = self.choices.kv_type, False
        types: tuple[KVType, KVType] = (kind, kind)
        matrices: tuple[Weight, ...] = ()
        if form == DECOMPRESSED:
            turned = "k_b" not in layer.tensors
            types = latent_types(layer, kind, turned)
            matrices = layer.tensors["k_b_turned" if turned else "k_b"], layer.tensors["v_b"]
        sizes = AttentionSizes(
            n_head=layer.n_head,
            n_head_kv=layer.n_head_kv if form is None else 1 if form == ABSORBED else layer.n_head,
            n_tokens=q.shape[1],
            d_k=q.shape[2],
            d_v=out.shape[2],
            kv_dtype=types,
            v_in_k=form == ABSORBED,
            window=layer.window,
            counted=self.choices.n_ctx if self.made.counted else 0,
        )
        sinks = layer.tensors.get("attn_sinks.weight")
        divides_keys = self.choices.split == "context"
        if divides_keys:
            sizes = replace(sizes, n_ranks=self.choices.ranks.size, out_dtype="float32")
            sinks = sinks if self.is_first_rank else None  # each row meets its sink once
            part = self.new("kqv_part", layer.n_head * q.shape[1], out.shape[2], "float32")
            to = part.planes(layer.n_head), self.new("lse", layer.n_head, q.shape[1], "float32")
        else:
            to = (out,)

        def bind(bound):
            call = bound.partial_attention if divides_keys else bound.attention
            return call(
                bound.kv_reader(layer, sizes, form, turned),
                sizes,
                bound.array(q),
                *(bound.array(each) for each in to),
                scale=layer.scale,
                window=layer.window or None,
                softcap=layer.softcap or None,
                sinks=None if sinks is None else bound.host_floats(sinks),
            )

        self.note("attention", "attention", (q, *to), bind, attention=sizes, matrices=matrices)
        if divides_keys:
            self.merge(part.planes(layer.n_head), to[-1], out)

    # ------------------------------------------------------------ output

    def logits(self, x: Rows, weight: Weight, n_rows: int) -> None:
        """``x @ weight.T`` to where the caller of the pass wants logits, `n_rows` tokens at a time."""
        exact, n_threads, n = self.choices.exact, self.choices.n_threads, x.shape[0]
        block = self.new("logits", n_rows, weight.shape[0], "float32")
        sizes = {n_rows, n % n_rows} - {0}  # fewer rows may take more
        plans = [self._matmul_plan(size, (weight,)) for size in sorted(sizes, reverse=True)]
        facts = dict(
            scratch_bytes=max(plan.scratch_bytes for plan in plans),
            path=plans[0].path,
            flops=2 * n * int(np.prod(weight.shape, dtype=np.int64)),
            weight_bytes=weight.n_bytes,
            matrices=(weight,),
        )

        def bind_product(bound):
            return functools.partial(
                matmul,
                bound.array(x),
                bound.weight(weight),
                pool=bound.scratch,
                out=bound.array(block),
                exact=exact,
                n_threads=n_threads,
            )

        def bind_copy(bound):
            return functools.partial(bound.give_logits, bound.array(block), 0)

        def bind_parts(bound):
            rows, table, part = bound.array(x), bound.weight(weight), bound.array(block)
            scratch = bound.scratch

            def run():
                for start in range(0, n, n_rows):
                    stop = min(start + n_rows, n)
                    matmul(
                        rows[start:stop],
                        table,
                        pool=scratch,
                        out=part[: stop - start],
                        exact=exact,
                        n_threads=n_threads,
                    )
                    bound.give_logits(part[: stop - start], start)

            return run

        if n == n_rows:
            self.note("output", "output", (x, block), bind_product, fixed=True, **facts)
            self.note("output", "logits", (block,), bind_copy, on_host=True)
        else:
            self.note("output", "output", (x, block), bind_parts, on_host=True, **facts)
