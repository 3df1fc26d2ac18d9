"""Rotary position embedding on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.shapes import dtype_name

from ..instances import ROPE
from . import launch

if TYPE_CHECKING:
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.ops.rope import RopeFrequencies
    from lowlevel.shapes import Array


# rope.cu's RopeCall.
CALL = np.dtype(
    [(name, "<i8") for name in ("head", "token", "item", "position_step")]
    + [
        (name, "<i4")
        for name in ("n_heads", "n_tokens", "n_pairs", "thread_heads", "pair_items", "second_items")
    ]
    + [("magnitude", "<f4"), ("unused", "<i4")]
)
# Heads that a thread turns by one angle, where there are threads enough for every multiprocessor.
THREAD_HEADS = 4
_ENOUGH_BLOCKS = 8  # of a multiprocessor


def rope(
    device: LaunchDevice,
    x: Array,
    positions: Array,
    frequencies: RopeFrequencies,
    halves: bool,
    offset: int,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.rope`."""
    launch.refuse_n_threads(device, n_threads)
    turns = frequencies.turns
    if len(turns) > 1 and turns.strides[0] != 8:
        raise ValueError(f"frequencies: must be contiguous; their stride is {turns.strides[0]}")
    if not x.size:
        return
    kernel = ROPE[dtype_name(x.dtype)]
    n_heads, n_tokens, _ = x.shape
    n_pairs, item = len(turns), x.itemsize
    pairs_of_heads = n_tokens * n_pairs
    enough = device.n_multiprocessors * _ENOUGH_BLOCKS * kernel.block
    thread_heads = THREAD_HEADS if n_heads * pairs_of_heads > THREAD_HEADS * enough else 1
    call = np.zeros((), CALL)
    call["head"], call["token"], call["item"] = (stride // item for stride in x.strides)
    call["position_step"] = positions.strides[0] // positions.itemsize
    call["n_heads"], call["n_tokens"], call["n_pairs"] = n_heads, n_tokens, n_pairs
    call["thread_heads"], call["magnitude"] = thread_heads, frequencies.magnitude
    call["pair_items"], call["second_items"] = (1, n_pairs) if halves else (2, 1)
    n_blocks = -(-pairs_of_heads * -(-n_heads // thread_heads) // kernel.block)
    device.launch(kernel, n_blocks, (x[..., offset:], positions, turns, call))
