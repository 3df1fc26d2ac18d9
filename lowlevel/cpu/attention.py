"""Running an attention plan on the CPU: operands to addresses, workers to threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import devices
from lowlevel.attention.kv_source import as_kv_source, padded_width
from lowlevel.attention.passes import passes

from . import attention_call, attention_kernel, kept, kv_fill, layout, threads
from .address import address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowlevel.attention.call import Operands
    from lowlevel.attention.kv_source import KVSource
    from lowlevel.attention.plan import AttentionPlan


# A window this long leaves nothing out; it keeps positions inside int32.
NO_WINDOW = 2**31 - 1


class _Rows(NamedTuple):
    """K or V as kernels read it: address of key 0 of head 0, strides and bytes of a key, its decoder."""

    address: int
    head: int
    key: int
    n_bytes: int
    fill: int
    dtype_name: str


_NOWHERE = _Rows(0, 0, 0, 0, 0, "")


def _float_strides(array, n):
    """The first `n` strides in float32 values; 0 where there is no array."""
    return (0,) * n if array is None else tuple(s // 4 for s in array.strides[:n])


def _first_key(x):
    """Where K or V begin, as `lowlevel.attention` takes them: arrays, or what has a source, as quantised ones have."""
    return address(x) if isinstance(x, np.ndarray) else address(as_kv_source(x, "k").data)


def _rows(source):
    """A source that is read row by row, whole."""
    head, key, _ = source.data.strides
    n_bytes = source.data.shape[2] * source.data.itemsize
    return _Rows(address(source.data), head, key, n_bytes, source.fill_address, source.type.name)


def _call(plan, operands, k, v, kv_heads):
    """The kernel's view of a plan and its operands, or of a pass of them, an array of one; k, v: `_Rows`."""
    o = operands
    n_head, n_tokens = o.q.shape[:2]
    n_head_kv = kv_heads.stop - kv_heads.start
    group = n_head // n_head_kv
    w = layout.widths(plan.heads, plan.rows, plan.d_k, plan.d_v)
    tile = layout.Tile(plan.heads, plan.rows, plan.keys, plan.n_splits)
    floats = layout.worker_floats(tile, plan.d_k, plan.d_v, plan.v_in_k)
    mask_strides = _float_strides(o.mask, 3)
    if o.mask is not None and o.mask.shape[0] == 1:
        mask_strides = (0, *mask_strides[1:])  # one for all heads
    fields = dict(
        n_head_kv=n_head_kv,
        group=group,
        n_tokens=n_tokens,
        n_kv=plan.n_kv,
        d_k=plan.d_k,
        d_v=plan.d_v,
        first_position=plan.n_kv - plan.n_tokens,
        first_key=0,
        last_key=plan.n_kv,
        resume=0,
        finish=1,
        heads=plan.heads,
        rows=plan.rows,
        keys=plan.keys,
        splits=plan.n_splits,
        head_tiles=-(-group // plan.heads),
        row_tiles=-(-n_tokens // plan.rows),
        panel=w.panel,
        q_depth=w.q_depth,
        k_stride=w.k_stride,
        v_stride=w.v_stride,
        kq_floats=floats["kq"],
        chunk_floats=floats["kv chunk"],
        tile_floats=floats["tile"],
        state_floats=floats["row state"],
        q=address(o.q),
        q_head=o.q.strides[0] // 4,
        q_token=o.q.strides[1] // 4,
        out=address(o.out),
        out_head=o.out.strides[0] // 4,
        out_token=o.out.strides[1] // 4,
        lse=address(o.lse),
        lse_head=_float_strides(o.lse, 1)[0],
        mask=address(o.mask),
        mask_head=mask_strides[0],
        mask_token=mask_strides[1],
        mask_key=mask_strides[2],
        slopes=address(o.alibi_slopes),
        sinks=address(o.sinks),
        k=k.address + kv_heads.start * k.head,
        k_head=k.head,
        k_key=k.key,
        k_bytes=k.n_bytes,
        k_fill=k.fill,
        v=v.address + kv_heads.start * v.head,
        v_head=v.head,
        v_key=v.key,
        v_bytes=v.n_bytes,
        v_fill=0 if plan.v_in_k else v.fill,
        v_column=o.v_column if plan.v_in_k else -1,
        k_direct=int(k.dtype_name == "float32" and plan.d_k % layout.LINE == 0),
        v_direct=int(v.dtype_name == "float32" and plan.d_v % layout.PANEL == 0),
        causal=int(o.causal),
        window=NO_WINDOW if o.window is None else min(o.window, NO_WINDOW),
        scale=np.float32(o.scale),
        softcap=np.float32(o.softcap or 0.0),
    )
    call = np.zeros(1, attention_call.CALL)
    for name in attention_call.CALL.names:
        call[name] = fields[name]
    return call


def _attend_kernel(path):
    """The compiled walk of a plan's path; each comes with kernels of its own."""
    family, _, kind = path.partition(" rows ")
    if family == "few":
        from .attention_few import ATTEND_FEW

        return ATTEND_FEW[kind]
    if path == "panels bf16":
        from .attention_pairs import attend_pairs

        return attend_pairs
    return attention_kernel.attend


def run(plan: AttentionPlan, operands: Operands, scratch: Mapping[str, np.ndarray]) -> None:
    """Compute ``operands.out`` (and lse) by `plan`.

    Parameters
    ----------
    plan : AttentionPlan
    operands : Operands
        Checked by `lowlevel.attention`.
    scratch : dict of str to numpy.ndarray
        The plan's blocks as float32 arrays, 1-D.
    """
    if plan.method == "steps":
        from . import steps  # loads threadpoolctl, and kernels of its own

        call = _call(plan, operands, _NOWHERE, _NOWHERE, slice(0, plan.n_head_kv))
        steps.run(plan, operands, scratch, call[0])
        return
    attend = _attend_kernel(plan.path)
    if plan.pass_keys:
        _run_passes(plan, operands, scratch, attend)
        return
    kept.launch(Walk(plan, operands, scratch, attend))


class Walk:
    """A call whose K and V are read where they lie: called, it runs; `again` runs it when there are other keys."""

    def __init__(
        self,
        plan: AttentionPlan,
        operands: Operands,
        scratch: Mapping[str, np.ndarray],
        attend: Any,
    ) -> None:
        self._plan, self._attend = plan, attend
        self._memory = operands, scratch  # whose addresses the call has
        k = _rows(operands.k)
        v = k if plan.v_in_k else _rows(operands.v)
        self._call = _call(plan, operands, k, v, slice(0, plan.n_head_kv))
        self._job = _job(self._call, scratch)

    def __call__(self):
        _walk(self._plan, self._job, self._attend)

    def again(self, plan: AttentionPlan, k: KVSource, v: KVSource) -> bool:
        """The same operands but for `k` and `v`, which lie as they did and have ``plan.n_kv`` keys.

        Returns
        -------
        bool
            False: nothing has run, for `plan` has other tiles or scratch.
        """
        if plan is not self._plan and _cut(plan) != _cut(self._plan):
            return False
        call, self._plan = self._call, plan
        call["k"], call["v"] = _first_key(k), _first_key(v)
        call["n_kv"] = call["last_key"] = plan.n_kv
        call["first_position"] = plan.n_kv - plan.n_tokens
        self()
        return True


def _cut(plan):
    """All that a call takes from its plan but the number of keys."""
    tile = plan.heads, plan.rows, plan.keys
    return plan.path, tile, plan.n_splits, plan.n_workers, plan.pass_keys, plan.scratch


def _job(call, scratch):
    """What task kernels are given; it is read until they have returned."""
    blocks = (scratch.get(name) for name in attention_call.JOB[1:])
    addresses = (0 if block is None else address(block) for block in blocks)
    return np.array([address(call), *addresses], np.int64)


def _walk(plan, job, attend):
    """All workers over all tiles of a call, whose splits are merged then."""
    for kernel in (attend, attention_kernel.merge)[: 1 + (plan.n_splits > 1)]:
        threads.run_tasks(plan.n_workers, kernel.address, address(job), 0)


# ---------------------------------------------------------------- K and V decoded in chunks


def _run_passes(plan, operands, scratch, attend):
    """Passes of some K/V heads and tokens, whose tiles go on from chunk to chunk of decoded keys."""
    group = plan.n_head // plan.n_head_kv
    for each in passes(plan, operands, group * plan.pass_heads, plan.pass_rows):
        read = [
            _chunk_reader(plan, source, scratch, name, each.kv_heads)
            for name, source in (("k", operands.k), ("v", operands.v))
        ]
        call = job = None
        for keys, _, is_first, is_last in each.chunks(plan.pass_keys):
            k, v = (read_rows(keys) for read_rows in read)
            if call is None:
                call = _call(plan, each.operands, k, v, each.kv_heads)
                call["first_position"] = each.first_position
                job = _job(call, scratch)
            for name, rows in (("k", k), ("v", v)):
                call[name] = rows.address + each.kv_heads.start * rows.head
            call["first_key"], call["last_key"] = keys.start, keys.stop
            call["resume"], call["finish"] = not is_first, is_last
            _walk(plan, job, attend)


def _chunk_reader(plan, source, scratch, name, kv_heads):
    """``read(keys)``: `_Rows` of which heads `kv_heads` and `keys` are there, decoded where need be."""
    if not source.type.in_chunks:
        rows = _rows(source)
        return lambda keys: rows
    n_heads, width = kv_heads.stop - kv_heads.start, source.shape[2]
    stride = padded_width(width)
    head = 4 * plan.pass_keys * stride
    block = scratch[f"{name} chunk"][: n_heads * plan.pass_keys * stride]
    values = block.reshape(n_heads, plan.pass_keys, stride)
    own = scratch.get(f"decode {name}")
    decode = source.reader(devices.get("cpu"), kv_heads, own, plan.n_workers)

    def read(keys):
        n_keys = keys.stop - keys.start
        if n_keys:
            decode(keys, values[:, :n_keys, :width])
        first = address(values) - kv_heads.start * head - 4 * keys.start * stride
        return _Rows(
            first, head, 4 * stride, 4 * width, kv_fill.DENSE["float32"].address, "float32"
        )

    return read
