"""What a `Recorder` notes of routed experts: each token's choice, and products with rows grouped by them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import ops

from .buffers import ExpertRows
from .tensors import of_one_format

if TYPE_CHECKING:
    from collections.abc import Callable

    from .buffers import Rows
    from .config import LayerConfig
    from .step import Choices
    from .tensors import Weight


class ExpertOperations:
    """The part of `Recorder` that is about routed experts."""

    choices: Choices

    if TYPE_CHECKING:

        def new(self, name: str, n: int, columns: int, dtype: str | None = None) -> Rows: ...

        def note(self, *arguments: Any, **facts: Any) -> None: ...

        def constant(
            self, name: str, make: Callable[[int], np.ndarray], per_token: int
        ) -> Rows: ...

        def _product(self, *arguments: Any, **options: Any) -> None: ...

    def route(self, layer: LayerConfig, logits: Rows) -> tuple[Rows, Rows]:
        """Experts of each token and their weights: (n_tokens, n_expert_used) of int32 and float32."""
        routing, n = layer.routing, logits.shape[0]
        assert routing is not None
        ids = self.new("expert_ids", n, routing.n_expert_used, "int32")
        weights = self.new("expert_weights", n, routing.n_expert_used, "float32")
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

        vectors = () if bias is None else (bias,)
        self.note("routing", "top_k", (logits, ids, weights), bind, vectors=vectors, fixed=True)
        return ids, weights

    def expert_rows(self, ids: Rows, weights: Rows) -> ExpertRows:
        """Each choice of each token a row: sorted by expert, or token after token where products sort them."""
        n_tokens, n_used = ids.shape
        n = n_tokens * n_used
        if self.choices.in_token_order:
            tokens = self.constant("row_tokens", lambda m: np.repeat(np.arange(m), n_used), n_used)
            return ExpertRows(tokens.rows(0, n), ids.flat(), weights.flat(), n_used)
        tokens = self.new("row_tokens", n, 1, "int32").flat()
        experts = self.new("row_experts", n, 1, "int32").flat()
        sorted_weights = self.new("row_weights", n, 1, "float32").flat()

        def bind(bound):
            outs = [bound.array(each) for each in (tokens, experts, sorted_weights)]
            return functools.partial(
                ops.sort_by_expert, bound.array(ids), bound.array(weights), *outs
            )

        touched = (ids, weights, tokens, experts, sorted_weights)
        self.note("routing", "by_expert", touched, bind, fixed=True)
        return ExpertRows(tokens, experts, sorted_weights, 1)

    def expert_product(
        self,
        x: Rows,
        weights: tuple[Weight, ...],
        experts: Rows,
        name: str,
        tokens: Rows | None = None,
    ) -> Rows:
        """Row i: ``x[tokens[i]] @ weight[experts[i]].T``, without tokens ``x[i]``; several weights side by side."""
        n = experts.shape[0]
        out = self.new(name, n, sum(weight.shape[1] for weight in weights))
        at = 0
        for together in of_one_format(weights):
            n_rows = sum(weight.shape[1] for weight in together)
            target, label = out.columns(at, at + n_rows), "+".join(w.stem for w in together)
            self._product(x, together, target, label, "experts", experts, tokens)
            at += n_rows
        return out

    def part_of_expert_product(
        self, x: Rows, weight: Weight, experts: Rows, name: str, first: int, out: Rows
    ) -> Rows:
        """Some columns of an `expert_product`, from `first` on, to `out`."""
        part = weight.part(first, first + out.shape[1], axis=1)
        self._product(x, (part,), out, name, "experts", experts, matrices=(weight,))
        return out

    def scatter_add(self, rows: Rows, out: Rows, of: ExpertRows, start: int) -> None:
        """``out[tokens[i]] += weights[i] * rows[i]``, for rows from `start` on."""
        n, n_threads = rows.shape[0], self.choices.n_threads
        weights = of.weights.rows(start, start + n)
        tokens = None if self.choices.in_token_order else of.tokens.rows(start, start + n)
        if self.choices.in_token_order:
            out = out.rows(start // of.per_token, (start + n) // of.per_token)
        plan = ops.plan_scatter_add(
            n, out.shape[0], in_order=tokens is None, device=self.choices.device
        )

        def bind(bound):
            return functools.partial(
                ops.scatter_add,
                bound.array(rows),
                bound.array(out),
                tokens=None if tokens is None else bound.array(tokens),
                weights=bound.array(weights),
                pool=bound.scratch,
                n_threads=n_threads,
            )

        touched = tuple(each for each in (rows, out, tokens, weights) if each is not None)
        scratch = plan.scratch_bytes
        self.note("experts", "scatter_add", touched, bind, scratch_bytes=scratch, fixed=True)
