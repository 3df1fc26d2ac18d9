"""Fused attention: launches of kernels that keep scores on the chip.

Dense K and V take one launch. Quantised ones are decoded a chunk of keys at a time into scratch, and
the kernel goes on from chunk to chunk with its rows' sums, maxima and denominators in scratch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowlevel.attention.passes import passes

from . import layout
from .attention_call import describe, set_strides
from .instances import FUSED, MERGE, WGMMA, WGMMA_SHAPES, Kernel
from .passes import chunk_reader
from .tensor_map import TensorMap, describable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowlevel.attention.call import Operands
    from lowlevel.attention.plan import AttentionPlan
    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


_ALIGNMENT = 16  # bytes that the kernels copy at a time
# Between them, log2(e) times a scale is a normal float32.
_SCALES_WITHIN_RANGE = 1e-37, 1e38
_MOST_REMEMBERED = 256  # of one plan


def run(
    device: LaunchDevice, plan: AttentionPlan, operands: Operands, scratch: Mapping[str, Array]
) -> None:
    """Compute ``operands.out`` (and lse); see `attention.run`."""
    if layout.is_decoded(plan.sizes):
        for each in passes(plan, operands, plan.heads, plan.rows):
            _run_pass(device, plan, each, scratch)
    else:
        _run_whole(device, plan, operands, scratch)


class _Launch(NamedTuple):
    """The launches of one pass over some keys, but for addresses."""

    kernel: Kernel
    latent: bool  # V is read out of K's rows
    counts_keys: bool
    box_keys: int  # of the boxes that the copy engine reads K and V by; 0: it does not
    n_blocks: int
    shared_bytes: int
    last: tuple  # arguments behind n_kv
    merge_call: np.ndarray | None

    def __call__(self, device, plan, o, k, v, mask, state):
        rows = (k,) if self.latent else (k, v)
        options = (o.lse, mask, o.alibi_slopes, o.sinks, *state)
        counted = (o.n_kv,) if self.counts_keys else ()
        if self.box_keys:
            rows = _boxes(rows, self.box_keys)
            arguments = (*rows, o.q, o.out, *options, *counted, *self.last)
        else:
            arguments = (o.q, *rows, o.out, *options, *counted, *self.last)
        device.launch(self.kernel, self.n_blocks, arguments, shared_mem=self.shared_bytes)

    def merge(self, device, plan, o, state):
        """Of the states that splits of the keys have left."""
        n_head, n_tokens = o.q.shape[:2]
        arguments = (*state, o.sinks, o.out, o.lse, plan.d_v, self.merge_call)
        n_blocks = n_head * n_tokens * -(-plan.d_v // layout.MERGED_COLUMNS)
        device.launch(MERGE[plan.q_dtype], n_blocks, arguments)


def _run_whole(device, plan, o, scratch):
    """K and V lie in memory: one launch, and one that merges splits. Calls that are alike but for addresses share a
    `_Launch`, which the plan remembers."""
    k, v, mask = o.k.data, o.v.data, o.mask
    aligned = tuple([_is_aligned(device, array) for array in (o.q, k, v)])
    keys = _Keys(plan.n_kv, plan.n_kv - plan.n_tokens, True, True)
    whole = slice(0, plan.n_head_kv)
    launch = _remembered(device, plan, o, whole, k, v, mask, keys, aligned)
    state = scratch.get("partial results"), scratch.get("row state")
    launch(device, plan, o, k, v, mask, state)
    if plan.n_splits > 1:
        launch.merge(device, plan, o, state)


def _remembered(device, plan, o, kv_heads, k, v, mask, keys, aligned):
    """The `_Launch` of a pass over some keys: one for all that are alike but for addresses."""
    key = (
        aligned, o.q.shape, o.q.strides, k.strides, v.strides, o.out.strides,
        None if o.lse is None else o.lse.strides, None if mask is None else (mask.shape, mask.strides),
        o.v_column, o.causal, o.window, o.scale, o.softcap, o.alibi_slopes is None,
        kv_heads.stop - kv_heads.start, keys,
    )  # fmt: skip
    launch = plan.remembered.get(key)
    if launch is None:
        call = _describe(plan, o, kv_heads)
        launch = _launch(device, plan, o, call, k, v, keys, all(aligned))
        if len(plan.remembered) < _MOST_REMEMBERED:
            plan.remembered[key] = launch
    return launch


class _Keys(NamedTuple):
    """A chunk of keys, as a launch is told of it."""

    n_keys: int
    first_position: int
    is_first: bool
    is_last: bool


def _run_pass(device, plan, each, scratch):
    """K or V are decoded a chunk at a time."""
    o = each.operands
    state = scratch.get("partial results"), scratch.get("row state")
    own = scratch.get("decode k"), scratch.get("decode v")
    read_k = chunk_reader(device, o.k, each.kv_heads, scratch.get("k chunk"), plan.q_dtype, own[0])
    if not plan.v_in_k:
        read_v = chunk_reader(
            device, o.v, each.kv_heads, scratch.get("v chunk"), plan.q_dtype, own[1]
        )
    q_aligned = _is_aligned(device, o.q)
    for keys, position, is_first, is_last in each.chunks(plan.keys):
        k = read_k(keys)
        v = k[..., o.v_column : o.v_column + plan.d_v] if plan.v_in_k else read_v(keys)
        aligned = q_aligned, _is_aligned(device, k), _is_aligned(device, v)
        chunk = _Keys(keys.stop - keys.start, position, is_first, is_last)
        mask = None if o.mask is None else o.mask[..., keys]
        launch = _remembered(device, plan, o, each.kv_heads, k, v, mask, chunk, aligned)
        launch(device, plan, o, k, v, mask, state)
    if plan.n_splits > 1:
        launch.merge(device, plan, o, state)


def _describe(plan, o, kv_heads):
    """A pass as kernels see it (see `attention_call`), without its keys."""
    n_tokens = o.q.shape[1]
    rows = layout.fused_shape(plan.sizes).rows
    call = describe(o, kv_heads, splits=plan.n_splits)
    group = int(call["group"])
    heads = min(plan.packed_heads, group)
    tokens = min(n_tokens, rows // heads)
    call["tile_heads"], call["head_tiles"] = heads, -(-group // heads)
    call["tile_tokens"], call["token_tiles"] = tokens, -(-n_tokens // tokens)
    call["out_is_float32"] = plan.out_dtype == "float32"
    return call


def _launch(device, plan, o, call, k, v, keys, aligned):
    """The `_Launch` of a pass over some keys; `call` is written to."""
    shape, general = layout.fused_shape(plan.sizes), _is_general(o)
    set_strides(call, "k", k)
    set_strides(call, "v", v)
    call["n_keys"], call["first_position"] = keys.n_keys, keys.first_position
    call["keys_per_split"] = layout.keys_per_split(keys.n_keys, plan.n_splits, shape.keys)
    call["v_column"] = o.v_column if shape.latent else 0
    call["aligned"], call["resume"] = aligned, not keys.is_first
    call["finish"] = keys.is_last and plan.n_splits == 1
    n_tiles = int(call["n_head_kv"]) * int(call["head_tiles"]) * int(call["token_tiles"])
    merge_call = None
    if plan.n_splits > 1:
        merge_call = call.copy()
        if general:
            merge_call["scale"] = 1  # maxima are of whole scores, not of q.k
    by_warpgroups = plan.path == layout.FUSED_WGMMA
    # attention_latent_wgmma.cuh wants V to be whole panels of K, all but the first or the last one.
    v_in_panels = not shape.latent or o.v_column in (0, plan.d_k - plan.d_v)
    by_boxes = by_warpgroups and aligned and v_in_panels
    by_boxes = by_boxes and _are_describable(device, (k,) if shape.latent else (k, v))
    box_keys = 0
    if by_boxes:
        kernel = WGMMA[plan.d_k, plan.d_v, plan.q_dtype, general]
        box_keys = WGMMA_SHAPES[plan.d_k, plan.d_v].keys
        shared_bytes, last = layout.wgmma_shared_bytes(plan.sizes), (call,)
    else:
        kernel = FUSED[plan.d_k, plan.d_v, shape.rows, plan.q_dtype, general]
        shared_bytes = layout.fused_shared_bytes(plan.sizes, shape, plan.stages)
        last = (plan.stages, call) if shape.latent else (call,)
    n_blocks = plan.n_splits * n_tiles
    return _Launch(
        kernel, shape.latent, shape.counts_keys, box_keys, n_blocks, shared_bytes, last, merge_call
    )


def _is_aligned(device, array):
    """Whether every row starts at a multiple of 16 bytes."""
    if array is None or array.size == 0:
        return True
    starts = (device.address(array), *array.strides[:-1])
    return all(start % _ALIGNMENT == 0 for start in starts)


def _one_head(array):
    """The array, or its first head if that is the same for all."""
    return array[:1] if array.shape[0] > 1 and array.strides[0] == 0 else array


def _are_describable(device, arrays):
    """Whether the copy engine can read K and V."""
    return all(
        describable(device.address(array), array.shape, array.strides)
        for array in map(_one_head, arrays)
    )


def _boxes(arrays, keys):
    """How it reads them, `keys` at a time."""
    return [TensorMap(_one_head(array), keys) for array in arrays]


def _is_general(operands):
    """Whether scores need more than a positive scale, causality and a window."""
    o = operands
    low, high = _SCALES_WITHIN_RANGE
    return not low < o.scale < high or any(
        x is not None for x in (o.softcap, o.mask, o.alibi_slopes)
    )
