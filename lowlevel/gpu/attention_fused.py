"""Fused attention: launches of kernels that keep scores on the chip.

Dense K and V take one launch. Quantised ones are decoded a chunk of keys at a time into scratch, and
the kernel goes on from chunk to chunk with its rows' sums, maxima and denominators in scratch.
"""

from lowlevel.attention.passes import Pass, passes

from . import layout
from .attention_call import describe, set_strides
from .instances import FUSED, MERGE
from .passes import chunk_reader
from .tensor_map import TensorMap, describable

_ALIGNMENT = 16  # bytes that the kernels copy at a time
# Between them, log2(e) times a scale is a normal float32.
_SCALES_WITHIN_RANGE = 1e-37, 1e38


def run(device, plan, operands, scratch):
    """Compute ``operands.out`` (and lse); see `attention.run`."""
    if layout.is_decoded(plan.sizes):
        for each in passes(plan, operands, plan.heads, plan.rows):
            _run_pass(device, plan, each, plan.keys, scratch)
        return
    everything = Pass(
        operands=operands,
        kv_heads=slice(0, plan.n_head_kv),
        keys=range(plan.n_kv),
        first_position=plan.n_kv - plan.n_tokens,
    )
    _run_pass(device, plan, everything, max(plan.n_kv, 1), scratch)


def _run_pass(device, plan, each, chunk_keys, scratch):
    o, shape = each.operands, layout.fused_shape(plan.sizes)
    n_head, n_tokens = o.q.shape[:2]
    call = describe(o, each.kv_heads, splits=plan.n_splits)
    group = int(call["group"])
    heads = layout.packed_heads(group, n_tokens, shape.rows)
    tokens = min(n_tokens, shape.rows // heads)
    tiles = dict(head_tiles=-(-group // heads), token_tiles=-(-n_tokens // tokens))
    fields = dict(tile_heads=heads, tile_tokens=tokens, out_is_float32=plan.out_dtype == "float32")
    for name, value in {**fields, **tiles}.items():
        call[name] = value
    state = scratch.get("partial results"), scratch.get("row state")
    own = scratch.get("decode k"), scratch.get("decode v")
    read_k = chunk_reader(device, o.k, each.kv_heads, scratch.get("k chunk"), plan.q_dtype, own[0])
    if not plan.v_in_k:
        read_v = chunk_reader(
            device, o.v, each.kv_heads, scratch.get("v chunk"), plan.q_dtype, own[1]
        )
    launch = _launcher(device, plan, o, state, call)
    q_aligned = _is_aligned(device, o.q)
    for keys, position, is_first, is_last in each.chunks(chunk_keys):
        k = read_k(keys)
        v = k[..., o.v_column : o.v_column + plan.d_v] if plan.v_in_k else read_v(keys)
        set_strides(call, "k", k)
        set_strides(call, "v", v)
        n_keys = keys.stop - keys.start
        for name, value in dict(
            n_keys=n_keys,
            keys_per_split=layout.keys_per_split(n_keys, plan.n_splits, shape.keys),
            first_position=position,
            v_column=o.v_column if shape.latent else 0,
            aligned=q_aligned and _is_aligned(device, k) and _is_aligned(device, v),
            resume=not is_first,
            finish=is_last and plan.n_splits == 1,
        ).items():
            call[name] = value
        launch(k, v, keys)
    if plan.n_splits > 1:
        if _is_general(o):
            call["scale"] = 1  # maxima are of whole scores, not of q.k
        merged = (*state, o.sinks, o.out, o.lse, plan.d_v, call)
        device.launch(MERGE[plan.q_dtype], n_head * n_tokens, merged)


def _launcher(device, plan, operands, state, call):
    """``launch(k, v, keys)``: the kernel on a chunk, all that does not change with it found before."""
    o, shape = operands, layout.fused_shape(plan.sizes)
    stages = layout.fused_stages(plan.sizes, shape)
    shared_bytes = layout.fused_shared_bytes(plan.sizes, shape, stages)
    general = _is_general(o)
    kernel = FUSED[plan.d_k, plan.d_v, shape.rows, plan.q_dtype, general]
    by_warpgroups = layout.kernel_of_warpgroups(plan.sizes, general)
    n_tiles = int(call["n_head_kv"]) * int(call["head_tiles"]) * int(call["token_tiles"])
    counted = (o.n_kv,) if shape.counts_keys else ()
    last = (*counted, stages, call) if shape.latent else (*counted, call)
    # attention_latent_wgmma.cuh wants V to be whole panels of K, all but the first or the last one.
    v_in_panels = not shape.latent or o.v_column in (0, plan.d_k - plan.d_v)

    def launch(k, v, keys):
        mask = None if o.mask is None else o.mask[..., keys]
        rows = (k,) if shape.latent else (k, v)
        options = (mask, o.alibi_slopes, o.sinks)
        boxes = None
        if by_warpgroups is not None and call["aligned"] and v_in_panels:
            boxes = _boxes(device, rows, layout.WGMMA_SHAPES[plan.d_k, plan.d_v].keys)
        if boxes is not None:
            arguments = (*boxes, o.q, o.out, o.lse, *options, *state, *counted, call)
            shared = layout.wgmma_shared_bytes(plan.sizes)
            device.launch(by_warpgroups, plan.n_splits * n_tiles, arguments, shared_mem=shared)
            return
        arguments = (o.q, *rows, o.out, o.lse, *options, *state, *last)
        device.launch(kernel, plan.n_splits * n_tiles, arguments, shared_mem=shared_bytes)

    return launch


def _is_aligned(device, array):
    """Whether every row starts at a multiple of 16 bytes."""
    if array is None or array.size == 0:
        return True
    starts = (device.address(array), *array.strides[:-1])
    return all(start % _ALIGNMENT == 0 for start in starts)


def _boxes(device, arrays, keys):
    """How the copy engine reads K and V, `keys` at a time; None: it cannot."""
    boxes = []
    for array in arrays:
        if array.shape[0] > 1 and array.strides[0] == 0:  # the same for all heads
            array = array[:1]
        if not describable(device.address(array), array.shape, array.strides):
            return None
        boxes.append(TensorMap(array, keys))
    return boxes


def _is_general(operands):
    """Whether scores need more than a positive scale, causality and a window."""
    o = operands
    low, high = _SCALES_WITHIN_RANGE
    return not low < o.scale < high or any(
        x is not None for x in (o.softcap, o.mask, o.alibi_slopes)
    )
