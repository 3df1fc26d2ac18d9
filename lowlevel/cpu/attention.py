"""Running an attention plan on the CPU: operands to addresses, workers to threads."""

import numpy as np

from . import attention_kernel, layout, threads

# A window this long leaves nothing out; it keeps positions inside int32.
NO_WINDOW = 2**31 - 1


def _address(array):
    return 0 if array is None else array.__array_interface__["data"][0]


def _float_strides(array, n):
    """The first `n` strides in float32 values; 0 where there is no array."""
    return (0,) * n if array is None else tuple(s // 4 for s in array.strides[:n])


def _key_bytes(source):
    """Bytes of one key of one head."""
    return source.data.shape[2] * source.data.itemsize


def _readable_in_place(source, step, dtype_name="float32"):
    """Whether a kernel may read a source's rows without decoding: `step` values at a time."""
    return int(source.dtype_name == dtype_name and source.shape[2] % step == 0)


def _call(plan, operands):
    """The kernel's view of a plan and its operands."""
    group = plan.n_head // plan.n_head_kv
    w = layout.widths(plan.heads, plan.rows, plan.d_k, plan.d_v)
    tile = layout.Tile(plan.heads, plan.rows, plan.keys, plan.n_splits)
    floats = layout.worker_floats(tile, plan.d_k, plan.d_v, plan.v_in_k)
    o = operands
    mask_strides = _float_strides(o.mask, 3)
    fields = dict(
        n_head_kv=plan.n_head_kv,
        group=group,
        n_tokens=plan.n_tokens,
        n_kv=plan.n_kv,
        d_k=plan.d_k,
        d_v=plan.d_v,
        heads=plan.heads,
        rows=plan.rows,
        keys=plan.keys,
        splits=plan.n_splits,
        head_tiles=-(-group // plan.heads),
        row_tiles=-(-plan.n_tokens // plan.rows),
        panel=w.panel,
        q_depth=w.q_depth,
        k_stride=w.k_stride,
        v_stride=w.v_stride,
        kq_floats=floats["kq"],
        chunk_floats=floats["kv chunk"],
        tile_floats=floats["tile"],
        state_floats=floats["row state"],
        q=_address(o.q),
        q_head=o.q.strides[0] // 4,
        q_token=o.q.strides[1] // 4,
        out=_address(o.out),
        out_head=o.out.strides[0] // 4,
        out_token=o.out.strides[1] // 4,
        lse=_address(o.lse),
        mask=_address(o.mask),
        mask_head=mask_strides[0],
        mask_token=mask_strides[1],
        mask_key=mask_strides[2],
        slopes=_address(o.alibi_slopes),
        sinks=_address(o.sinks),
        k=_address(o.k.data),
        k_head=o.k.data.strides[0],
        k_key=o.k.data.strides[1],
        k_bytes=_key_bytes(o.k),
        k_fill=o.k.fill_address,
        v=_address(o.v.data),
        v_head=o.v.data.strides[0],
        v_key=o.v.data.strides[1],
        v_bytes=_key_bytes(o.v),
        v_fill=0 if plan.v_in_k else o.v.fill_address,
        v_column=o.v_column if plan.v_in_k else -1,
        k_direct=_readable_in_place(o.k, layout.LINE),
        v_direct=_readable_in_place(o.v, layout.PANEL),
        causal=int(o.causal),
        window=NO_WINDOW if o.window is None else min(o.window, NO_WINDOW),
        scale=np.float32(o.scale),
        softcap=np.float32(o.softcap or 0.0),
    )
    call = np.zeros(1, attention_kernel.CALL)
    for name in attention_kernel.CALL.names:
        call[name] = fields[name]
    return call[0]


def _attend_kernel(plan, operands):
    """The kernel for the number of query rows, and the products' precision.

    Few query rows wait for memory, not for products: they are in float32.
    """
    n_rows = plan.heads * plan.rows
    if n_rows <= layout.FEWEST_ROWS:
        from .attention_few import ATTEND_FEW  # kernels of its own

        return ATTEND_FEW[_type_in_place(operands)]
    if operands.precision == "bf16" and n_rows > layout.FEW_ROWS:
        from . import bfloat

        if bfloat.AVAILABLE:
            from . import attention_pairs  # kernels of its own

            return attention_pairs.attend_pairs
    return attention_kernel.attend


def _type_in_place(operands):
    """The 16-bit type of both K and V that is read where it lies, or float32."""
    for name in ("float16", "bfloat16"):
        if _readable_in_place(operands.k, layout.LINE, name) and _readable_in_place(
            operands.v, layout.PANEL, name
        ):
            return name
    return "float32"


def run(plan, operands, scratch):
    """Compute ``operands.out`` (and lse) by `plan`.

    Parameters
    ----------
    plan : AttentionPlan
    operands : Operands
        Checked by `lowlevel.attention`.
    scratch : dict of str to numpy.ndarray
        The plan's blocks as float32 arrays, 1-D.
    """
    call = _call(plan, operands)
    if plan.method == "steps":
        from . import steps  # loads threadpoolctl, and kernels of its own

        steps.run(plan, operands, scratch, call)
        return
    empty = np.empty(0, np.float32)
    state = scratch["row state"]
    partial = scratch.get("partial results", empty)
    blocks = (scratch["kq"], scratch["kv chunk"], scratch["tile"], state, state.view(np.int32))
    counter = np.zeros(1, np.int64)

    attend = _attend_kernel(plan, operands)

    def work(worker):
        return attend(call, *blocks, partial, counter, worker)

    threads.run_workers(plan.n_workers, work, counter)
    if plan.n_splits > 1:
        counter[0] = 0
        threads.run_workers(
            plan.n_workers, lambda _: attention_kernel.merge(call, partial, counter), counter
        )
