"""Attention over several parts of the keys joined on the CPU: see `lowlevel.merge_states`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.devices import Device


def merge(
    device: Device,
    outs: Sequence[np.ndarray],
    lses: Sequence[np.ndarray],
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Write the joined state; checked arrays, (n_head, n_tokens, d_v) and (n_head, n_tokens)."""
    top = np.maximum.reduce(lses)
    # Parts without keys have lse -inf; where all have, any finite reference will do.
    reference = np.where(np.isneginf(top), 0, top)
    weights = [np.exp(x - reference) for x in lses]
    total = np.add.reduce(weights)
    divisor = np.where(total == 0, 1, total)
    joined = np.zeros(out.shape, np.float32)
    for part, weight in zip(outs, weights, strict=True):
        share = (weight / divisor)[..., None]
        np.add(
            joined,
            np.multiply(share, part, where=share != 0, out=np.zeros_like(joined), dtype=np.float32),
            out=joined,
        )
    out[...] = joined
    with np.errstate(divide="ignore"):
        lse[...] = reference + np.log(total)
