"""A pass of attention as the kernels see it: attention_call.cuh's AttentionCall, filled from operands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lowlevel.attention.call import Operands
    from lowlevel.shapes import Array


# attention_call.cuh's AttentionCall.
STRIDES = {
    "q": ("q_head", "q_token"),
    "k": ("k_head", "k_key"),
    "v": ("v_head", "v_key"),
    "out": ("out_head", "out_token"),
    "mask": ("mask_head", "mask_token", "mask_key"),
    "lse": ("lse_head",),
}
_INTS = (
    "n_head_kv group n_tokens n_keys tile_heads tile_tokens head_tiles token_tiles splits "
    "keys_per_split first_position causal window v_column aligned out_is_float32 resume finish"
).split()
CALL = np.dtype(
    [(field, "<i8") for fields in STRIDES.values() for field in fields]
    + [(field, "<i4") for field in _INTS]
    + [("scale", "<f4"), ("softcap", "<f4"), ("unused", "<u8")]
)
# A window this long leaves nothing out.
NO_WINDOW = 2**31 - 1


def describe(operands: Operands, kv_heads: slice, **fields: Any) -> np.ndarray:
    """The kernels' view of a pass (CALL): sizes, strides but those of K and V, options; and `fields`."""
    o = operands
    n_head, n_tokens = o.q.shape[:2]
    n_head_kv = kv_heads.stop - kv_heads.start
    call = np.zeros((), CALL)
    for name in ("q", "out", "mask", "lse"):
        set_strides(call, name, getattr(o, name))
    fields.update(
        n_head_kv=n_head_kv,
        group=n_head // n_head_kv,
        n_tokens=n_tokens,
        causal=o.causal,
        window=NO_WINDOW if o.window is None else min(o.window, NO_WINDOW),
        scale=o.scale,
        softcap=o.softcap or 0.0,
    )
    for name, value in fields.items():
        call[name] = value
    return call


def set_strides(call: np.ndarray, name: str, array: Array | None) -> None:
    """Write an array's strides into a call, in elements; 0 along an axis of one."""
    if array is None:
        return
    for field, stride, length in zip(STRIDES[name], array.strides, array.shape, strict=False):
        call[field] = stride // array.itemsize if length > 1 else 0
