"""A call cut into passes: query heads and tokens that walk the keys together, a chunk at a time.

Kernels get views of the operands, and so know one pass and one chunk only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .call import Operands
    from .plan import AttentionPlan


class Pass(NamedTuple):
    """Some query heads and tokens of a call.

    Attributes
    ----------
    operands : Operands
        Views of their rows; k and v are those of the whole call.
    kv_heads : slice
        The K/V heads that they read.
    keys : range
        Keys that some of the tokens may see, among those that its chunks start from.
    first_position : int
        Of the first token.
    """

    operands: Any
    kv_heads: slice
    keys: range
    first_position: int

    def chunks(self, n_keys: int) -> Iterator[tuple[slice, int, bool, bool]]:
        """(keys, position of the first token counted from the first of them, first?, last?)."""
        if not self.keys:
            yield slice(0, 0), self.first_position, True, True
        for start in range(self.keys.start, self.keys.stop, n_keys):
            stop = min(start + n_keys, self.keys.stop)
            first, last = start == self.keys.start, stop == self.keys.stop
            yield slice(start, stop), self.first_position - start, first, last


def passes(plan: AttentionPlan, operands: Operands, n_heads: int, n_rows: int) -> Iterator[Pass]:
    """Yield a call's passes of so many query heads and tokens."""
    group = plan.n_head // plan.n_head_kv
    step = group if n_heads < group else plan.n_head
    for first in range(0, plan.n_head, step):
        for head in range(first, first + step, n_heads):
            heads = slice(head, min(head + n_heads, first + step))
            for token in range(0, plan.n_tokens, n_rows):
                tokens = slice(token, min(token + n_rows, plan.n_tokens))
                yield Pass(
                    operands=_rows(operands, heads, tokens),
                    kv_heads=slice(heads.start // group, -(-heads.stop // group)),
                    keys=_visible_keys(plan, operands, tokens),
                    first_position=plan.n_kv - plan.n_tokens + tokens.start,
                )


def _visible_keys(plan, operands, tokens):
    position = plan.n_kv - plan.n_tokens
    low, high = 0, plan.n_kv
    if operands.causal:
        high = min(high, max(0, position + tokens.stop))
    if operands.window is not None:
        low = max(low, position + tokens.start - operands.window + 1)
    return range(min(low, high), high)


def _rows(operands, heads, tokens):
    """Operands' views for some heads and tokens."""
    o = operands
    mask_heads = heads if o.mask is not None and o.mask.shape[0] > 1 else slice(None)
    return o._replace(
        q=o.q[heads, tokens],
        out=o.out[heads, tokens],
        lse=None if o.lse is None else o.lse[heads, tokens],
        mask=None if o.mask is None else o.mask[mask_heads, tokens],
        alibi_slopes=None if o.alibi_slopes is None else o.alibi_slopes[heads],
        sinks=None if o.sinks is None else o.sinks[heads],
    )
