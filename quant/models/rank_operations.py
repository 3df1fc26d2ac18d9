"""What a `Recorder` notes where ranks divide a model: sums over them, and merging of what they found."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lowlevel import ops
from lowlevel.comm import plan_transfer

from .context import merge_parts, plan_merge

if TYPE_CHECKING:
    from .buffers import Rows
    from .step import Choices
    from .tensors import Weight


class RankOperations:
    """The part of `Recorder` that is about other ranks; nothing where there is one."""

    choices: Choices

    if TYPE_CHECKING:

        def note(self, *arguments: Any, **facts: Any) -> None: ...

        def product(self, *arguments: Any, **options: Any) -> Rows: ...

        def add_vector(self, x: Rows, bias: Weight, experts: Rows | None = None) -> None: ...

    def summed_product(self, x: Rows, weight: Weight, bias: Weight | None = None) -> Rows:
        """``x @ weight.T + bias``, x being this rank's columns of a row that ranks share: the same on all of them."""
        y = self.product(x, weight, dtype="float32" if self.sums_over_ranks else None)
        self.all_reduce(y)
        if bias is not None:
            self.add_vector(y, bias)
        return y

    def all_reduce(self, x: Rows) -> None:
        """The sum of all ranks' rows, in place; nothing where there is one rank."""
        ranks, n_threads = self.choices.ranks, self.choices.n_threads
        if not self.sums_over_ranks:
            return
        plan = plan_transfer("all_reduce", x.shape, x.buffer.dtype, ranks)

        def bind(bound):
            return functools.partial(
                bound.comm.all_reduce, bound.array(x), pool=bound.scratch, n_threads=n_threads
            )

        facts = dict(scratch_bytes=plan.scratch_bytes, staging_bytes=plan.staging_bytes)
        # The host meets the other ranks.
        self.note("all_reduce", x.buffer.name, (x,), bind, on_host=True, **facts)

    def keep_on_first_rank(self, x: Rows) -> None:
        """Zeros on all ranks but the first: what they add to these rows is added up by `all_reduce`, x once."""
        if not self.is_first_rank:
            n_threads = self.choices.n_threads

            def bind(bound):
                return functools.partial(ops.scale, bound.array(x), 0.0, n_threads=n_threads)

            self.note("add", "partial", (x,), bind, fixed=True)

    @property
    def sums_over_ranks(self) -> bool:
        """Whether feed-forward parts are divided."""
        return self.choices.ranks.size > 1 and self.choices.split in ("tensor", "context")

    @property
    def divides_heads(self) -> bool:
        """Whether this rank has some heads only."""
        return self.choices.ranks.size > 1 and self.choices.split == "tensor"

    @property
    def is_first_rank(self) -> bool:
        """Whether this rank adds what is to be added once."""
        return self.choices.ranks.rank == 0

    def merge(self, part: Rows, lse: Rows, out: Rows) -> None:
        """All ranks' parts of attention, (n_head, n_tokens, d_v), to `out`."""
        plan = plan_merge(part.shape, self.choices.ranks)

        def bind(bound):
            arrays = [bound.array(each) for each in (part, lse, out)]
            return functools.partial(
                merge_parts, bound.comm, plan, *arrays, bound.scratch, self.choices.n_threads
            )

        facts = dict(scratch_bytes=plan.scratch_bytes, staging_bytes=plan.staging_bytes)
        self.note("merge", "attention", (part, lse, out), bind, on_host=True, **facts)
