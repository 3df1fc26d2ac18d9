"""Attention by tiles of scores in scratch: product, softmax in place, product; float32 throughout.

For any head sizes, any float types, any strides. Each tile of heads and tokens walks the keys that
its tokens see, a chunk at a time; the kernels get views of the operands and so know one tile only.
"""

import numpy as np

from .attention import CALL, NO_WINDOW, set_strides
from .instances import FINISH, PRODUCT, SCAN, SOFTMAX

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
    group = plan.n_head // plan.n_head_kv
    step = group if plan.heads < group else plan.n_head
    for first in range(0, plan.n_head, step):
        for head in range(first, first + step, plan.heads):
            heads = slice(head, min(head + plan.heads, first + step))
            for token in range(0, plan.n_tokens, plan.rows):
                tokens = slice(token, min(token + plan.rows, plan.n_tokens))
                _run_tile(device, plan, operands, scratch, heads, tokens)


def _run_tile(device, plan, operands, scratch, heads, tokens):
    group = plan.n_head // plan.n_head_kv
    kv_heads = slice(heads.start // group, -(-heads.stop // group))
    tile = _Tile(device, plan, _of_tile(operands, heads, tokens, kv_heads), scratch)
    keys = _visible_keys(plan, operands, tokens)
    if not keys:
        tile.add_keys(slice(0, 0), 0, resume=False)
    for start in range(keys.start, keys.stop, plan.keys):
        chunk = slice(start, min(start + plan.keys, keys.stop))
        position = plan.n_kv - plan.n_tokens + tokens.start - start
        tile.add_keys(chunk, position, resume=start > keys.start)
    tile.finish()


def _visible_keys(plan, operands, tokens):
    """Keys that some of the tokens may see."""
    position = plan.n_kv - plan.n_tokens
    low, high = 0, plan.n_kv
    if operands.causal:
        high = min(high, max(0, position + tokens.stop))
    if operands.window is not None:
        low = max(low, position + tokens.start - operands.window + 1)
    return range(min(low, high), high)


def _of_tile(operands, heads, tokens, kv_heads):
    """The operands' views for a tile; k and v as arrays."""

    def rows(array):
        return None if array is None else array[heads, tokens]

    def per_head(array):
        return None if array is None else array[heads]

    mask = operands.mask
    if mask is not None:
        mask = mask[heads if mask.shape[0] > 1 else slice(None), tokens]
    return operands._replace(
        q=rows(operands.q),
        out=rows(operands.out),
        lse=rows(operands.lse),
        mask=mask,
        alibi_slopes=per_head(operands.alibi_slopes),
        sinks=per_head(operands.sinks),
        k=operands.k.data[kv_heads],
        v=operands.v.data[kv_heads],
    )


class _Tile:
    """One tile's launches."""

    def __init__(self, device, plan, operands, scratch):
        self.device, self.plan, self.operands, self.scratch = device, plan, operands, scratch
        self.n_head, self.n_tokens = operands.q.shape[:2]
        self.n_head_kv = operands.k.shape[0]
        self.group = self.n_head // self.n_head_kv
        self.call = np.zeros((), CALL)
        for name in ("q", "k", "v", "out", "mask"):
            set_strides(self.call, name, getattr(operands, name))
        fields = dict(
            n_head_kv=self.n_head_kv,
            group=self.group,
            n_tokens=self.n_tokens,
            causal=operands.causal,
            window=NO_WINDOW if operands.window is None else min(operands.window, NO_WINDOW),
            scale=operands.scale,
            softcap=operands.softcap or 0.0,
        )
        for name, value in fields.items():
            self.call[name] = value

    def add_keys(self, keys, position, resume):
        """Go on to a chunk of keys; `position`: of the tile's first token, from the first of them."""
        o, n_keys = self.operands, keys.stop - keys.start
        k, v = o.k[:, keys], o.v[:, keys]
        call = self.call.copy()
        call["n_keys"], call["first_position"], call["resume"] = n_keys, position, resume
        kq, not_finite = self.scratch["kq"], self.scratch["not finite"]
        sums, state = self.scratch["tile"], self.scratch["row state"]
        if n_keys:
            scan = SCAN[self.plan.v_dtype]
            self.device.launch(scan, self.n_head_kv * n_keys, (v, not_finite, self.plan.d_v, call))
            self._scores(k, kq, n_keys)
        mask = None if o.mask is None else o.mask[..., keys]
        self.device.launch(
            SOFTMAX[self.plan.v_dtype],
            self.n_head * self.n_tokens,
            (kq, sums, state, not_finite, v, mask, o.alibi_slopes)
            + (self.plan.keys, self.plan.d_v, call),
        )
        if n_keys:
            self._values(v, kq, sums, n_keys)

    def _scores(self, k, kq, n_keys):
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
            b_type=_TYPE_CODES[self.plan.k_dtype],
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
            b_type=_TYPE_CODES[self.plan.v_dtype],
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
        lse_head = 0 if o.lse is None else o.lse.strides[0] // 4
        self.device.launch(
            FINISH[self.plan.out_dtype],
            self.n_head * self.n_tokens,
            (self.scratch["tile"], self.scratch["row state"], o.sinks, o.out, o.lse)
            + (lse_head, self.plan.d_v, self.call),
        )
