"""Casts between float32, float16 and bfloat16 on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.shapes import dtype_name

from .instances import CAST

if TYPE_CHECKING:
    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


# cast.cu's CastCall.
CALL = np.dtype(
    [
        (name, "<i8")
        for name in (
            "source_plane source_row target_plane target_row n_rows columns n_items".split()
        )
    ]
)
_ITEMS_OF_A_THREAD = 4  # kItems


def cast(device: LaunchDevice, target: Array, source: Array) -> None:
    """Write `source` into `target`, both (planes, rows, columns) with a contiguous last axis; no element in common.

    A source of one plane goes to every plane of the target.
    """
    kinds = dtype_name(source.dtype), dtype_name(target.dtype)
    if kinds[0] == kinds[1]:
        device.copy(target, source)
        return
    if target.size == 0:
        return
    call = np.zeros((), CALL)
    for name, array in (("source", source), ("target", target)):
        for axis, field in enumerate(("plane", "row")):
            call[f"{name}_{field}"] = array.strides[axis] // array.itemsize
    if len(source) == 1:
        call["source_plane"] = 0
    _, call["n_rows"], call["columns"] = target.shape
    call["n_items"] = target.size
    kernel = CAST[kinds]
    n_blocks = -(-target.size // (kernel.block * _ITEMS_OF_A_THREAD))
    device.launch(kernel, n_blocks, (source, target, call))
