"""Running an attention plan on devices that launch CUDA kernels: operands to launches.

Shared by "cuda:N" and "cudasim"; what differs between them is below `kernel_device.KernelDevice`.
"""

import numpy as np

from lowlevel import devices

from . import layout
from .instances import FUSED, MERGE

# attention_call.cuh's AttentionCall.
STRIDES = {
    "q": ("q_head", "q_token"),
    "k": ("k_head", "k_key"),
    "v": ("v_head", "v_key"),
    "out": ("out_head", "out_token"),
    "mask": ("mask_head", "mask_token", "mask_key"),
}
_INTS = (
    "n_head_kv group n_tokens n_keys tile_heads tile_tokens head_tiles token_tiles splits "
    "keys_per_split first_position causal window v_column aligned out_is_float32 resume finish"
).split()
CALL = np.dtype(
    [(field, "<i8") for fields in STRIDES.values() for field in fields]
    + [(field, "<i4") for field in _INTS]
    + [("scale", "<f4"), ("softcap", "<f4")]
)
# A window this long leaves nothing out.
NO_WINDOW = 2**31 - 1
_ALIGNMENT = 16  # bytes that the kernels copy at a time


def run(plan, operands, scratch):
    """Compute ``operands.out`` (and lse) by `plan`, in the order of the device's other work.

    Parameters
    ----------
    plan : AttentionPlan
    operands : Operands
        Checked by `lowlevel.attention`; arrays of the plan's device, but for alibi_slopes and sinks.
    scratch : dict of str to array
        The plan's blocks as float32 arrays, 1-D.
    """
    device = devices.get(plan.device)
    operands = operands._replace(
        alibi_slopes=_on_device(device, operands.alibi_slopes),
        sinks=_on_device(device, operands.sinks),
    )
    if layout.is_fused(plan.sizes):
        _run_fused(device, plan, operands, scratch)
    else:
        from . import attention_tiles

        attention_tiles.run(device, plan, operands, scratch)


def _on_device(device, values):
    return None if values is None else device.from_host(values)


def describe(device, plan, operands):
    """The kernels' view of a call (CALL), all keys in one launch."""
    o = operands
    tile = layout.Tile(plan.heads, plan.rows, plan.keys, plan.n_splits)
    group = plan.n_head // plan.n_head_kv
    call = np.zeros((), CALL)
    for name in STRIDES:
        array = getattr(o, name)
        if name in "kv":
            array = array.data
        set_strides(call, name, array)
    fields = dict(
        n_head_kv=plan.n_head_kv,
        group=group,
        n_tokens=plan.n_tokens,
        n_keys=plan.n_kv,
        tile_heads=plan.heads,
        tile_tokens=plan.rows,
        head_tiles=-(-group // plan.heads),
        token_tiles=-(-plan.n_tokens // plan.rows),
        splits=plan.n_splits,
        keys_per_split=layout.keys_per_split(plan.n_kv, tile),
        first_position=plan.n_kv - plan.n_tokens,
        causal=o.causal,
        window=NO_WINDOW if o.window is None else min(o.window, NO_WINDOW),
        v_column=o.v_column,
        aligned=all(is_aligned(device, x) for x in (o.q, o.k.data, o.v.data)),
        out_is_float32=plan.out_dtype == "float32",
        resume=False,
        finish=plan.n_splits == 1,
        scale=o.scale,
        softcap=o.softcap or 0.0,
    )
    for name, value in fields.items():
        call[name] = value
    return call


def set_strides(call, name, array):
    """Write an array's strides into a call, in elements; 0 along an axis of one."""
    if array is None:
        return
    for field, stride, length in zip(STRIDES[name], array.strides, array.shape, strict=False):
        call[field] = stride // array.itemsize if length > 1 else 0


def is_aligned(device, array):
    """Whether every row starts at a multiple of 16 bytes."""
    starts = (device.address(array), *array.strides[:-1])
    return array.size == 0 or all(start % _ALIGNMENT == 0 for start in starts)


def is_general(operands):
    """Whether scores need more than a positive scale, causality and a window."""
    o = operands
    return o.scale <= 0 or any(x is not None for x in (o.softcap, o.mask, o.alibi_slopes))


def _run_fused(device, plan, operands, scratch):
    o, call = operands, describe(device, plan, operands)
    shape = layout.fused_shape(plan.sizes)
    state = scratch.get("partial results"), scratch.get("row state")
    kernel = FUSED[plan.d_k, plan.d_v, plan.k_dtype, is_general(o)]
    n_blocks = plan.n_splits * plan.n_head_kv * int(call["head_tiles"] * call["token_tiles"])
    keys_and_values = (o.k.data,) if shape.latent else (o.k.data, o.v.data)
    results = (o.out, o.lse, o.mask, o.alibi_slopes, o.sinks, *state)
    stages = layout.fused_stages(plan.sizes, shape)
    more = (stages, call) if shape.latent else (call,)
    device.launch(
        kernel,
        n_blocks,
        (o.q, *keys_and_values, *results, *more),
        shared_mem=layout.fused_shared_bytes(plan.sizes, shape, stages),
    )
    if plan.n_splits > 1:
        merged = (*state, o.sinks, o.out, o.lse, plan.d_v, call)
        device.launch(MERGE[plan.k_dtype], plan.n_head * plan.n_tokens, merged)
