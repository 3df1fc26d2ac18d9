"""Choosing experts on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..instances import ROUTE
from . import launch

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array


# routing.cu's RoutingCall and Gating.
CALL = np.dtype(
    [(f"{name}_row", "<i8") for name in ("logits", "ids", "weights")]
    + [
        (name, "<i4")
        for name in ("n_tokens n_expert n_used gating n_group n_group_used normalise".split())
    ]
    + [("scale", "<f4")]
)
_GATINGS = {"softmax": 0, "sigmoid": 1, "softmax_selected": 2, "sqrt_softplus": 3}
_WARP = 32


def route(
    device: LaunchDevice,
    logits: Rows,
    bias: Array | None,
    ids: Rows,
    weights: Rows,
    gating: str,
    n_group: int,
    n_group_used: int,
    normalise: bool,
    scale: float,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.top_k_routing`; logits, ids and weights as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not logits.array.size:
        return
    (kind,) = launch.kinds(logits)
    kernel, call = ROUTE[kind], np.zeros((), CALL)
    for name, rows in (("logits", logits), ("ids", ids), ("weights", weights)):
        call[f"{name}_row"] = rows.row // rows.array.itemsize
    _, call["n_tokens"], call["n_expert"] = logits.shape
    call["n_used"], call["gating"] = ids.shape[2], _GATINGS[gating]
    call["n_group"], call["n_group_used"] = n_group, n_group_used
    call["normalise"], call["scale"] = normalise, scale
    n_blocks = -(-logits.n_rows * _WARP // kernel.block)
    device.launch(kernel, n_blocks, (logits.array, bias, ids.array, weights.array, call))
