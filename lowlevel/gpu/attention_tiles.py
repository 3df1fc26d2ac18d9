"""Attention by tiles of scores in scratch: product, softmax in place, product.

For any head sizes, any types, any strides. Each pass of heads and tokens walks the keys that its
tokens see, a chunk at a time. Queries, keys and values become float32 in scratch, without gaps, so that
the device's matrix product takes them (float32 keys stay where they lie if their rows do not overlap). Where all three have 16 bits or are decoded for such queries,
they are exact as TF32, and products may round weights to it (2**-11 of each): tensor cores do those.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowlevel.attention.passes import passes

from .attention_call import describe, set_strides
from .instances import FINISH, SCAN, SOFTMAX, WIDEN
from .passes import chunk_reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowlevel.attention.call import Operands
    from lowlevel.attention.plan import AttentionPlan
    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


def run(
    device: LaunchDevice, plan: AttentionPlan, operands: Operands, scratch: Mapping[str, Array]
) -> None:
    """Compute ``operands.out`` (and lse) tile by tile; see `attention.run`."""
    scratch = _Scratch(scratch)
    with device.gemm(scratch["gemm workspace"]) as gemm:
        for each in passes(plan, operands, plan.heads, plan.rows):
            tile = _Tile(device, plan, each, scratch, gemm)
            for keys, position, is_first, _ in each.chunks(plan.keys):
                tile.add_keys(keys, position, resume=not is_first)
            tile.finish()


class _Scratch:
    """Blocks of scratch by tag, and their beginnings as arrays: all chunks and tiles but the last are alike."""

    def __init__(self, blocks):
        self._blocks, self._made = blocks, {}

    def __getitem__(self, tag):
        return self._blocks[tag]

    def get(self, tag):
        return self._blocks.get(tag)

    def part(self, tag, *shape, columns=None):
        """The beginning of a block as an array of `shape`, or the first columns of that."""
        key = tag, shape, columns
        if key not in self._made:
            part = self._blocks[tag][: math.prod(shape)].reshape(shape)
            self._made[key] = part if columns is None else part[..., :columns]
        return self._made[key]


class _Tile:
    """One tile's launches and products."""

    def __init__(self, device, plan, each, scratch, gemm):
        self.device, self.plan, self.operands, self.gemm = device, plan, each.operands, gemm
        self.scratch = scratch
        self.read_k, self.read_v = (
            chunk_reader(
                device, source, each.kv_heads, scratch["kv chunk"], "float32", scratch.get(own)
            )
            for source, own in ((each.operands.k, "decode k"), (each.operands.v, "decode v"))
        )
        self.call = describe(each.operands, each.kv_heads)
        self.n_head, self.n_tokens = each.operands.q.shape[:2]
        self.n_head_kv = int(self.call["n_head_kv"])
        self.rows = self.n_head * self.n_tokens // self.n_head_kv  # of one K/V head
        self.may_round = plan.q_dtype != "float32" and "float32" not in (plan.k_dtype, plan.v_dtype)
        self.sums = self.scratch.part("tile", self.n_head_kv, self.rows, plan.d_v)
        q = self.scratch.part("q tile", self.n_head, self.n_tokens, plan.d_k)
        self._widen(plan.q_dtype, each.operands.q, q)
        self.q = q.reshape(self.n_head_kv, self.rows, plan.d_k)

    def add_keys(self, keys, position, resume):
        """Go on to a chunk of keys; `position`: of the tile's first token, from the first of them."""
        o, plan, call, n_keys = self.operands, self.plan, self.call, keys.stop - keys.start
        call["n_keys"], call["first_position"], call["resume"] = n_keys, position, resume
        kq = self.scratch.part("kq", self.n_head_kv, self.rows, plan.keys, columns=n_keys)
        if n_keys:
            k = self._keys(keys)
            self.gemm(self.q, k, kq, transposed=True, may_round=self.may_round)
        v, v_type = self._values(keys)
        set_strides(call, "v", v)
        not_finite = self.scratch["not finite"]
        if n_keys:
            scanned = (v, not_finite, plan.d_v, call)
            self.device.launch(SCAN[v_type], self.n_head_kv * n_keys, scanned)
        mask = None if o.mask is None else o.mask[..., keys]
        self.device.launch(
            SOFTMAX[v_type],
            self.n_head * self.n_tokens,
            (self.scratch["kq"], self.scratch["tile"], self.scratch["row state"], not_finite, v)
            + (mask, o.alibi_slopes, plan.keys, plan.d_v, call),
        )
        if n_keys:
            in_chunk = v_type == "float32" and self._is_in_chunk()
            clean = (
                v if in_chunk else self.scratch.part("kv chunk", self.n_head_kv, n_keys, plan.d_v)
            )
            self._widen(v_type, v, clean, clean=True)
            self.gemm(kq, clean, self.sums, may_round=self.may_round, accumulate=True)

    def _keys(self, keys):
        """K's chunk as the product takes it: where it lies, if it can be and V is not cleaned in it."""
        k = self.read_k(keys)
        dtype_name = self._dense_type(self.plan.kv_types[0])
        if dtype_name == "float32" and not self.plan.v_in_k and _has_plain_rows(k):
            return k
        widened = self.scratch.part("kv chunk", *k.shape)
        self._widen(dtype_name, k, widened)
        return widened

    def _is_in_chunk(self):
        """Whether `_values` lie in the block "kv chunk"."""
        return self.plan.v_in_k or not self.plan.kv_types[1].is_dense

    def _values(self, keys):
        """V's chunk, NaN and inf still in it, and its type; decoded, it takes K's place in scratch."""
        plan, n_keys = self.plan, keys.stop - keys.start
        if plan.v_in_k:
            k = self.scratch.part("kv chunk", self.n_head_kv, n_keys, plan.d_k)
            column = self.operands.v_column
            return k[..., column : column + plan.d_v], "float32"
        return self.read_v(keys), self._dense_type(plan.kv_types[1])

    @staticmethod
    def _dense_type(kind):
        """The name of what a source's values are read as: what is decoded is float32."""
        return kind.name if kind.is_dense else "float32"

    def _widen(self, dtype_name, source, target, clean=False):
        """Copy (heads, rows, d) to float32."""
        n_heads, n_rows, d = source.shape
        strides = (
            array.strides[axis] // array.itemsize for array in (source, target) for axis in (0, 1)
        )
        arguments = (source, target, d, n_rows, *strides, int(clean))
        self.device.launch(WIDEN[dtype_name], n_heads * n_rows, arguments)

    def finish(self):
        """Write the tile's rows of out and lse."""
        o = self.operands
        self.device.launch(
            FINISH[self.plan.out_dtype],
            self.n_head * self.n_tokens,
            (self.scratch["tile"], self.scratch["row state"], o.sinks, o.out, o.lse)
            + (self.plan.d_v, self.call),
        )


def _has_plain_rows(array):
    """Whether cuBLAS takes an array's rows: apart by at least their length, counted in 32 bits."""
    n_heads, n_rows, d = array.shape
    step = array.strides[1] // array.itemsize
    return (n_rows == 1 or d <= step < 2**31) and (n_heads == 1 or array.strides[0] >= 0)
