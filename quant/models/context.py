"""Keys over ranks: each keeps the rows of some tokens, attends over these, and all merge what they found.

Of every pass each rank keeps the rows of one stretch of its tokens, so that all have as many as they can. Over its own
rows a rank's attention is causal within that stretch; tokens before it see the older rows alone, tokens behind it all of
them. Parts are merged by the logarithms of their sums (`lowlevel.merge_states`), some heads at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import merge_states, ops, plans
from lowlevel.comm import Outline, plan_transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowlevel import Pool
    from lowlevel.comm import Comm
    from lowlevel.plans import Scratch

# Parts are merged in one step where they are no more than this; else in as many as twice the ranks.
AT_ONCE = 2**20


class Segment(NamedTuple):
    """Rows of q that see the same keys of a rank, or by causality.

    Attributes
    ----------
    start, stop : int
        Rows of q.
    n_keys : int
        The rank's first so many.
    causal : bool
        The last rows of q are the tokens of the last keys.
    """

    start: int
    stop: int
    n_keys: int
    causal: bool


class Share(NamedTuple):
    """A rank's share of one pass.

    Attributes
    ----------
    start, stop : int
        Tokens of the pass whose rows it keeps.
    n_before : int
        Rows that it had before.
    """

    start: int
    stop: int
    n_before: int

    def segments(self, n_tokens: int, n_queries: int) -> Iterator[Segment]:
        """Calls of attention for the last `n_queries` of a pass's tokens."""
        first, n_own = n_tokens - n_queries, self.stop - self.start
        ranges = (
            (0, self.start, self.n_before, False),
            (self.start, self.stop, self.n_before + n_own, True),
            (self.stop, n_tokens, self.n_before + n_own, False),
        )
        for start, stop, n_keys, causal in ranges:
            start = max(start, first)
            if start < stop:
                yield Segment(start - first, stop - first, n_keys, causal)


class KeyShares:
    """Which rank keeps the row of each token: the same book on all of them.

    Parameters
    ----------
    n_ctx : int
    ranks : Outline
    """

    def __init__(self, n_ctx: int, ranks: Outline) -> None:
        self._ranks = ranks
        self._owner = np.zeros(n_ctx, np.int16)
        # Rows of each rank, of the first so many tokens.
        self._counts, self._n_counted = np.zeros(ranks.size, np.int64), 0

    def deal(self, n_kv: int, n_tokens: int) -> Share:
        """This rank's share of the next tokens, behind `n_kv` others."""
        size, rank = self._ranks.size, self._ranks.rank
        first, last = sorted((n_kv, self._n_counted))
        between = np.bincount(self._owner[first:last], minlength=size)
        self._counts += between if n_kv > self._n_counted else -between
        counts = self._counts.tolist()
        new = dealt(counts, n_tokens)
        self._counts, self._n_counted = self._counts + new, n_kv + n_tokens
        ends = np.cumsum([0, *new]).tolist()
        for owner in range(size):
            self._owner[n_kv + ends[owner] : n_kv + ends[owner + 1]] = owner
        return Share(ends[rank], ends[rank + 1], counts[rank])


def dealt(counts: Sequence[int], n_new: int) -> list[int]:
    """New rows of each rank that make the ranks' rows as equal as can be; of what is left over the first have one more."""
    low, high = min(counts), max(counts) + n_new
    while low < high:  # the lowest level up to which all of them can be filled
        level = (low + high) // 2
        if sum(max(0, level - count) for count in counts) >= n_new:
            high = level
        else:
            low = level + 1
    new = [max(0, low - count) for count in counts]
    too_many = sum(new) - n_new
    for rank in reversed(range(len(new))):
        if too_many and new[rank]:
            new[rank] -= 1
            too_many -= 1
    return new


def own_rows(share: Share | None, rows: tuple[Any, ...], n_kv: int) -> tuple[tuple[Any, ...], int]:
    """Rows of new tokens, (heads, n_tokens, d), that this rank keeps, and behind how many others."""
    if share is None:
        return rows, n_kv
    return tuple(x[:, share.start : share.stop] for x in rows), share.n_before


@dataclass(frozen=True)
class MergePlan:
    """How ranks' parts are merged.

    Attributes
    ----------
    n_ranks, n_head, n_tokens, d_v : int
    n_heads : int
        Heads of a step.
    scratch : tuple of (str, int)
    staging_bytes : int
    """

    n_ranks: int
    n_head: int
    n_tokens: int
    d_v: int
    n_heads: int
    scratch: Scratch
    staging_bytes: int
    path: str = "by heads"

    @property
    def scratch_bytes(self) -> int:
        """Of the pool, to the byte."""
        return plans.taken(self.scratch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "path": self.path,
            "n_ranks": self.n_ranks,
            "n_heads": self.n_heads,
            "scratch": plans.shown(self.scratch),
            "scratch_bytes": self.scratch_bytes,
            "staging_bytes": self.staging_bytes,
        }


def plan_merge(shape: tuple[int, ...], ranks: Outline) -> MergePlan:
    """The plan for parts of a shape, (n_head, n_tokens, d_v) of float32."""
    n_head, n_tokens, d_v = shape
    of_head = 4 * ranks.size * n_tokens * d_v
    is_small = of_head * n_head <= AT_ONCE
    n_heads = n_head if is_small else max(1, n_head // (2 * ranks.size))
    scratch = ("parts", of_head * n_heads), ("sums", 4 * ranks.size * n_head * n_tokens)
    staging = max(
        plan_transfer("all_gather", each, "float32", ranks).staging_bytes
        for each in ((n_heads, n_tokens, d_v), (n_head, n_tokens))
    )
    return MergePlan(ranks.size, n_head, n_tokens, d_v, n_heads, scratch, staging)


def merge_parts(
    comm: Comm,
    plan: MergePlan,
    part: Any,
    lse: Any,
    out: Any,
    scratch: Pool,
    n_threads: int | None = None,
) -> None:
    """All ranks' parts of attention to `out`, the same bits on all of them.

    Parameters
    ----------
    comm : Comm
    plan : MergePlan
    part, lse : arrays of float32, (n_head, n_tokens, d_v) and (n_head, n_tokens)
        This rank's.
    out : array, shape of `part`
        Of any float type.
    scratch : Pool
    n_threads : int, optional
    """
    n, n_head, n_tokens = plan.n_ranks, plan.n_head, plan.n_tokens
    with scratch.call("merge", scratch_bytes=plan.scratch_bytes), scratch.scope("merge"):
        parts = scratch.empty((n, plan.n_heads, n_tokens, plan.d_v), "float32", tag="parts")
        sums = scratch.empty((n, n_head, n_tokens), "float32", tag="sums")
        comm.all_gather(lse, sums)
        for start in range(0, n_head, plan.n_heads):
            stop = min(start + plan.n_heads, n_head)
            all_parts = parts.reshape(-1)[: n * (stop - start) * n_tokens * plan.d_v]
            all_parts = all_parts.reshape(n, stop - start, n_tokens, plan.d_v)
            comm.all_gather(part[start:stop], all_parts)
            outs, lses = list(all_parts), [each[start:stop] for each in sums]
            merged, _ = merge_states(outs, lses, out=outs[0], lse=lses[0])
            ops.cast(merged, out[start:stop], n_threads=n_threads)
