"""Keys and values of MLA as attention reads them: decompressed from the cache's latents, chunk by chunk.

For head h and cached token j (DeepSeek-V2, arXiv:2405.04434, equations 10 to 15)::

    k[h, j] = [c_kv[j] . wk_b[h]^T | k_pe[j]]
    v[h, j] =  c_kv[j] . wv_b[h]^T

Neither ever exists as a whole: attention's plan says how many heads and keys of them do at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from lowlevel import devices
from lowlevel.attention.kv_source import KVType, as_kv_source

from .tensor import QuantTensor


@dataclasses.dataclass(frozen=True)
class LatentType(KVType):
    """What a plan knows of keys or values in latents.

    Attributes
    ----------
    rank : int
        Values of a latent (kv_lora_rank).
    d : int
        Columns that a head's weights make of it.
    d_tail : int
        Columns after those that all heads share: k_pe's.
    latents : str
        What the latents are kept as: "float16", "Q8_0", ...
    """

    rank: int = 0
    d: int = 0
    d_tail: int = 0
    latents: str = "float32"
    in_chunks: ClassVar[bool] = True

    def scratch_bytes(self, device: str, heads: int, keys: int, dtype: str = "float32") -> int:
        return devices.kernels("quant", devices.get(device), "latent").scratch_bytes(
            self, heads, keys, dtype
        )


def latent_type(latents: str, weights: str, rank: int, d: int, d_tail: int = 0) -> LatentType:
    """The `LatentType` of latents kept as `latents` and weights of a format."""
    name = f"latent {latents}, {weights}"
    return LatentType(name, rank=rank, d=d, d_tail=d_tail, latents=latents)


class LatentSource:
    """Keys or values, (n_head, n_kv, d + d_tail), as attention reads them: a `KVSource`.

    Attributes
    ----------
    latents, tail : KVSource
        (1, n_kv, rank) and (1, n_kv, d_tail); `tail` may be None.
    weights : QuantTensor
        (n_head, d, rank), or (n_head, rank, d) with `transposed`.
    """

    def __init__(self, latents: Any, tail: Any, weights: QuantTensor, transposed: bool) -> None:
        self.latents, self.tail, self.weights, self.transposed = latents, tail, weights, transposed
        n_head, d, rank = weights.shape
        if transposed:
            d, rank = rank, d
        d_tail = tail.shape[2] if tail is not None else 0
        self.type = latent_type(latents.type.name, weights.format.name, rank, d, d_tail)
        self.shape = n_head, latents.shape[1], d + d_tail
        sources = (latents,) if tail is None else (latents, tail)
        self.arrays = (*(source.data for source in sources), weights.data)

    def reader(
        self, device: devices.Device, heads: slice, scratch: Any = None, n_threads: int = 1
    ) -> Callable[[slice, Any], None]:
        room = devices.kernels("quant", device, "latent")
        return room.reader(self, device, heads, scratch, n_threads)

    def kv_source(self) -> LatentSource:
        return self


class LatentKV:
    """K and V of one layer's MLA cache: ``lowlevel.attention(q, kv.k, kv.v)``.

    Parameters
    ----------
    c_kv : array or QuantTensor, (n_kv, kv_lora_rank)
        float32, float16, bfloat16 or 32-weight blocks, in any strides with a contiguous last axis (zero
        strides too); normed, as the cache has it.
    k_pe : array or QuantTensor, (n_kv, d_rope)
        Turned by RoPE already.
    wk_b : QuantTensor, (n_head, d_nope, kv_lora_rank)
        Any format. With `k_transposed` (n_head, kv_lora_rank, d_nope), as `attn_k_b` of files is.
    wv_b : QuantTensor, (n_head, d_v, kv_lora_rank)
        Any format: `attn_v_b`, or the last rows of each head of `attn_kv_b`.
    k_transposed : bool

    Attributes
    ----------
    k, v : LatentSource
        (n_head, n_kv, d_nope + d_rope) and (n_head, n_kv, d_v).

    Raises
    ------
    TypeError, ValueError
        An argument is not of its kind or does not fit the others.
    """

    def __init__(
        self,
        c_kv: Any,
        k_pe: Any,
        wk_b: QuantTensor,
        wv_b: QuantTensor,
        k_transposed: bool = False,
    ) -> None:
        latents, tail = _rows(c_kv, "c_kv"), _rows(k_pe, "k_pe")
        rank = latents.shape[2]
        _check_weights(wk_b, "wk_b", rank, 1 if k_transposed else 2)
        _check_weights(wv_b, "wv_b", rank, 2)
        if wk_b.shape[0] != wv_b.shape[0]:
            raise ValueError(
                f"wv_b: expected the {wk_b.shape[0]} heads of wk_b, got shape {wv_b.shape}"
            )
        if tail.shape[1] != latents.shape[1]:
            raise ValueError(
                f"k_pe: expected the {latents.shape[1]} rows of c_kv, got {tail.shape[1]}"
            )
        self.k = LatentSource(latents, tail, wk_b, k_transposed)
        self.v = LatentSource(latents, None, wv_b, False)


def _rows(x, name):
    """(n, d) as a source of one head."""
    if isinstance(x, QuantTensor):
        if x.ndim == 2:
            return as_kv_source(x.reshape(1, *x.shape), name)
    elif getattr(x, "ndim", None) == 2:
        return as_kv_source(x[None], name)
    shape = getattr(x, "shape", None)
    given = type(x).__name__ if shape is None else f"shape {shape}"
    raise ValueError(f"{name}: expected an array or QuantTensor of shape (n_kv, d), got {given}")


def _check_weights(t, name, rank, axis):
    if not isinstance(t, QuantTensor):
        raise TypeError(f"{name}: expected a QuantTensor, got {type(t).__name__}")
    if t.ndim != 3 or t.shape[axis] != rank or 0 in t.shape:
        wanted = f"(n_head, d, {rank})" if axis == 2 else f"(n_head, {rank}, d)"
        raise ValueError(
            f"{name}: expected shape {wanted} for c_kv's {rank} columns, got {t.shape}"
        )
