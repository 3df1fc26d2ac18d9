"""Attention by tiles of scores in scratch: product, softmax in place, product; float32 throughout.

For any head sizes, any float types, any strides. Each tile of heads and tokens walks the keys that
its tokens see, a chunk at a time; the kernels get views of the operands and so know one tile only.
"""

import numpy as np

from .attention import describe, set_strides
from .instances import FINISH, PRODUCT, SCAN, SOFTMAX
from .layout import is_quantised
from .passes import passes, read_chunk

# attention_product.cu's Product.
PRODUCT_CALL = np.dtype(
    [(name, "<i8") for name in "a_batch a_part a_row b_batch b_n b_k c_batch c_row".split()]
    + [(name, "<i4") for name in "n_batch m n k a_rows a_type b_type accumulate clean".split()],
    align=True,
)
PRODUCT_TILE = 128  # kTile
_TYPE_CODES = {"float32": 4, "float16": 2, "bfloat16": 3}


def run(device, plan, operands, scratch):
    """Compute ``operands.out`` (and lse) tile by tile; see `attention.run`."""
    for each in passes(plan, operands):
        tile = _Tile(device, plan, each, scratch)
        for keys, position, is_first, _ in each.chunks(plan.keys):
            tile.add_keys(keys, position, resume=not is_first)
        tile.finish()


class _Tile:
    """One tile's launches."""

    def __init__(self, device, plan, each, scratch):
        self.device, self.plan, self.operands, self.scratch = device, plan, each.operands, scratch
        self.kv_heads = each.kv_heads
        self.call = describe(each.operands, each.kv_heads)
        self.n_head, self.n_tokens = each.operands.q.shape[:2]
        self.n_head_kv, self.group = int(self.call["n_head_kv"]), int(self.call["group"])

    def add_keys(self, keys, position, resume):
        """Go on to a chunk of keys; `position`: of the tile's first token, from the first of them."""
        o, n_keys = self.operands, keys.stop - keys.start
        call = self.call
        call["n_keys"], call["first_position"], call["resume"] = n_keys, position, resume
        kq, not_finite = self.scratch["kq"], self.scratch["not finite"]
        sums, state = self.scratch["tile"], self.scratch["row state"]
        k = v = self._read(o.k, keys)
        if n_keys:
            self._scores(k, kq, n_keys)
        if self.plan.v_in_k:  # decoded already, if K is quantised
            v = k[..., o.v_column : o.v_column + self.plan.d_v]
        else:
            v = self._read(o.v, keys)  # takes K's place in scratch
        set_strides(call, "v", v)
        v_type = _dense_type(self.plan.v_dtype)
        if n_keys:
            scanned = (v, not_finite, self.plan.d_v, call)
            self.device.launch(SCAN[v_type], self.n_head_kv * n_keys, scanned)
        mask = None if o.mask is None else o.mask[..., keys]
        self.device.launch(
            SOFTMAX[v_type],
            self.n_head * self.n_tokens,
            (kq, sums, state, not_finite, v, mask, o.alibi_slopes)
            + (self.plan.keys, self.plan.d_v, call),
        )
        if n_keys:
            self._values(v, kq, sums, n_keys)

    def _read(self, source, keys):
        chunk = self.scratch.get("kv chunk")
        return read_chunk(self.device, source, self.kv_heads, keys, chunk, "float32")

    def _scores(self, k, kq, n_keys):
        set_strides(self.call, "k", k)
        rows = self.group * self.n_tokens
        self._product(
            self.operands.q,
            k,
            kq,
            along_k=True,
            a_batch=self.group * self.call["q_head"],
            a_part=self.call["q_head"],
            a_row=self.call["q_token"],
            a_rows=self.n_tokens,
            a_type=_TYPE_CODES[self.plan.q_dtype],
            b_batch=self.call["k_head"],
            b_n=self.call["k_key"],
            b_k=1,
            b_type=_TYPE_CODES[_dense_type(self.plan.k_dtype)],
            c_batch=rows * self.plan.keys,
            c_row=self.plan.keys,
            n=n_keys,
            k=self.plan.d_k,
        )

    def _values(self, v, kq, sums, n_keys):
        rows = self.group * self.n_tokens
        self._product(
            kq,
            v,
            sums,
            along_k=False,
            a_batch=rows * self.plan.keys,
            a_row=self.plan.keys,
            a_rows=rows,
            a_type=_TYPE_CODES["float32"],
            b_batch=self.call["v_head"],
            b_n=1,
            b_k=self.call["v_key"],
            b_type=_TYPE_CODES[_dense_type(self.plan.v_dtype)],
            c_batch=rows * self.plan.d_v,
            c_row=self.plan.d_v,
            n=self.plan.d_v,
            k=n_keys,
            accumulate=True,
            clean=True,
        )

    def _product(self, a, b, c, *, along_k, **fields):
        call = np.zeros((), PRODUCT_CALL)
        call["n_batch"], call["m"] = self.n_head_kv, self.group * self.n_tokens
        for name, value in fields.items():
            call[name] = value
        m_tiles, n_tiles = -(-int(call["m"]) // PRODUCT_TILE), -(-int(call["n"]) // PRODUCT_TILE)
        self.device.launch(PRODUCT[along_k], self.n_head_kv * m_tiles * n_tiles, (a, b, c, call))

    def finish(self):
        """Write the tile's rows of out and lse."""
        o = self.operands
        self.device.launch(
            FINISH[self.plan.out_dtype],
            self.n_head * self.n_tokens,
            (self.scratch["tile"], self.scratch["row state"], o.sinks, o.out, o.lse)
            + (self.plan.d_v, self.call),
        )


def _dense_type(dtype_name):
    """The type of a chunk of K or V."""
    return "float32" if is_quantised(dtype_name) else dtype_name
