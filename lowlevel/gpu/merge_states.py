"""Attention over several parts of the keys joined on a device: see `lowlevel.merge_states`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.shapes import dtype_name

from .instances import MERGE_STATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


# merge_states.cu's MergeCall.
_STRIDES = "part_head part_token part_lse_head part_lse_token out_head out_token lse_head lse_token".split()
CALL = np.dtype(
    [(name, "<i8") for name in _STRIDES]
    + [(name, "<i4") for name in ("n_tokens", "d_v", "is_first", "unused")]
)


def merge(
    device: LaunchDevice,
    outs: Sequence[Array],
    lses: Sequence[Array],
    out: Array,
    lse: Array,
) -> None:
    """Write the joined state; checked arrays of `device`, (n_head, n_tokens, d_v) and (n_head, n_tokens)."""
    if out.ndim != 3:
        raise ValueError(f"outs[0]: expected shape (n_head, n_tokens, d_v), got {out.shape}")
    n_head, n_tokens, d_v = out.shape
    for i, (part, part_lse) in enumerate(zip(outs, lses, strict=True)):
        call = np.zeros((), CALL)
        for name, array in (("part", part), ("part_lse", part_lse), ("out", out), ("lse", lse)):
            for axis, field in enumerate(("head", "token")):
                call[f"{name}_{field}"] = array.strides[axis] // array.itemsize
        call["n_tokens"], call["d_v"], call["is_first"] = n_tokens, d_v, i == 0
        if n_head * n_tokens:
            kernel = MERGE_STATES[dtype_name(part.dtype)]
            device.launch(kernel, n_head * n_tokens, (out, lse, part, part_lse, call))
