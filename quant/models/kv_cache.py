"""The K/V cache of a model: a layer's keys and values, or its latents, of the tokens so far.

A layer with a window keeps its last rows only, in memory for the window and one u-batch: where the next tokens do not
fit behind the ones that are there, what the window still needs is moved to the front first. So rows always stand in the
order of their tokens, and attention reads them in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel import devices, ops
from lowlevel.attention.kv_source import DENSE_DTYPES, KVType, kv_type_of
from lowlevel.pool.arena import align_up
from lowlevel.shapes import array_layout

from ..formats import KV_FORMATS, block_format
from ..latent import LatentKV, latent_type
from ..quantize import quantize
from ..tensor import QuantTensor

if TYPE_CHECKING:
    from lowlevel import Pool

    from .config import LayerConfig, ModelConfig

_DENSE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def kv_type_names() -> tuple[str, ...]:
    """Types that a cache can have, as `-ctk` takes them."""
    return (*_DENSE, *(row.name.lower() for row in KV_FORMATS))


def kv_type(name: str) -> KVType:
    """The `KVType` of a cache's type by its name: "f16", "q8_0", ...

    Raises
    ------
    ValueError
        There is none of that name; lists those there are.
    """
    if name not in kv_type_names():
        raise ValueError(f"kv_type: expected one of {', '.join(kv_type_names())}; got {name!r}")
    return kv_type_of(_DENSE.get(name, name.upper()))


class _Store(NamedTuple):
    """How one array of a cache lies: heads, rows, values of a row."""

    heads: int
    rows: int
    d: int
    type: KVType

    @property
    def is_dense(self) -> bool:
        return self.type.name in DENSE_DTYPES

    @property
    def layout(self) -> tuple[tuple[int, int, int], str]:
        """Shape and dtype."""
        if self.is_dense:
            return (self.heads, self.rows, self.d), self.type.name
        return (self.heads, self.rows, block_format(self.type.name).row_bytes(self.d)), "uint8"

    @property
    def n_bytes(self) -> int:
        return align_up(array_layout(*self.layout)[2])

    def staging_bytes(self, n_tokens: int) -> int:
        """Scratch for the blocks of new rows, before they go to their heads."""
        if self.is_dense or self.heads == 1:
            return 0
        return align_up(n_tokens * self.heads * block_format(self.type.name).row_bytes(self.d))


def cache_rows(layer: LayerConfig, n_ctx: int, n_ubatch: int) -> int:
    """Tokens that a layer's cache holds."""
    return min(n_ctx, layer.window + n_ubatch) if layer.window else n_ctx


def stores(layer: LayerConfig, n_ctx: int, n_ubatch: int, kind: KVType) -> tuple[_Store, ...]:
    """The arrays of a layer's cache: K and V, or the latents with the RoPE part beside them."""
    rows = cache_rows(layer, n_ctx, n_ubatch)
    if layer.is_latent:
        widths = ((1, layer.kv_lora_rank + layer.rope.n_rot),)
    else:
        widths = ((layer.n_head_kv, layer.d_k), (layer.n_head_kv, layer.d_v))
    for _, d in widths:
        if d % kind.block_weights or (layer.is_latent and layer.kv_lora_rank % kind.block_weights):
            raise ValueError(
                f"kv_type: {kind.name} packs {kind.block_weights} values in a block, which does not divide "
                f"layer {layer.index}'s rows of {d}; f16, f32 and bf16 work"
            )
    return tuple(_Store(heads, rows, d, kind) for heads, d in widths)


def cache_bytes(config: ModelConfig, n_ctx: int, n_ubatch: int, kind: KVType) -> int:
    """What the whole cache takes from its pool, to the byte."""
    return sum(
        store.n_bytes for layer in config.layers for store in stores(layer, n_ctx, n_ubatch, kind)
    )


class LayerCache:
    """One layer's cache.

    Attributes
    ----------
    base : int
        The token whose row is the first one.
    """

    def __init__(
        self, layer: LayerConfig, n_ctx: int, n_ubatch: int, kind: KVType, pool: Pool
    ) -> None:
        self._layer, self._kind = layer, kind
        self._device = devices.get(pool.device)
        self._stores = stores(layer, n_ctx, n_ubatch, kind)
        tag = f"kv cache {layer.index}"
        self._arrays = [pool.empty(*store.layout, tag=tag) for store in self._stores]
        self.base = 0
        self._move: tuple[int, int, int] | None = None  # new base, rows kept, parts moved so far

    def make_room(self, n_kv: int, n_tokens: int) -> None:
        """See that rows of tokens from `n_kv` on fit; what the window does not need any more may go.

        An interrupt leaves a move that the next call ends.
        """
        self._end_move()
        rows = self._stores[0].rows
        if n_kv + n_tokens - self.base > rows:
            kept = min(self._layer.window - 1, n_kv - self.base)
            self._move = n_kv - kept, kept, 0
            self._end_move()

    def _end_move(self) -> None:
        """Rows of the new base on to the front, in parts that do not overlap: any part can be done again."""
        if self._move is None:
            return
        base, kept, n_done = self._move
        shift = base - self.base
        for part in range(n_done, -(-kept // shift)):
            start, stop = part * shift, min((part + 1) * shift, kept)
            for array in self._arrays:
                self._device.copy(array[:, start:stop], array[:, start + shift : stop + shift])
            self._move = base, kept, part + 1
        self.base, self._move = base, None

    def first_kept(self) -> int:
        """The first token whose row is there."""
        self._end_move()
        return self.base

    def clear(self) -> None:
        """Forget all rows."""
        self.base, self._move = 0, None

    def write(self, rows: tuple[Any, ...], n_kv: int, scratch: Pool, n_threads: int | None) -> None:
        """Rows of new tokens from `n_kv` on: (heads, n_tokens, d) of K and V, or of latents."""
        at = n_kv - self.base
        for x, store, array in zip(rows, self._stores, self._arrays, strict=True):
            target = array[:, at : at + x.shape[1]]
            if store.is_dense:
                ops.cast(x, target, n_threads=n_threads)
                continue
            by_token = x.transpose(1, 0, 2)
            if store.heads == 1:
                quantize(x, store.type.name, out=target, n_threads=n_threads)
                continue
            planned = store.staging_bytes(x.shape[1])
            with scratch.call("kv rows", scratch_bytes=planned), scratch.scope("kv rows"):
                shape = (*by_token.shape[:2], target.shape[2])
                blocks = scratch.empty(shape, "uint8", tag="kv rows")
                quantize(by_token, store.type.name, out=blocks, n_threads=n_threads)
                self._device.copy(target, blocks.transpose(1, 0, 2))

    def read(self, n_kv: int, n_keys: int) -> tuple[Any, ...]:
        """The last `n_keys` rows of `n_kv` tokens, each array as attention takes it: (heads, n_keys, d)."""
        stop = n_kv - self.base
        return tuple(
            self._as_source(array[:, stop - n_keys : stop], store.d)
            for array, store in zip(self._arrays, self._stores, strict=True)
        )

    def latent(self, n_kv: int, k_b: QuantTensor, v_b: QuantTensor, turned: bool) -> LatentKV:
        """K and V of all heads, to be decompressed as attention reads them."""
        (rows,) = self._arrays
        rank, n_rot = self._layer.kv_lora_rank, self._layer.rope.n_rot
        width = rows.shape[2] * rank // (rank + n_rot)
        c_kv = self._as_source(rows[:, :n_kv, :width], rank)
        k_pe = self._as_source(rows[:, :n_kv, width:], n_rot)
        return LatentKV(c_kv[0], k_pe[0], k_b, v_b, k_transposed=turned)

    def absorbed(self, n_kv: int) -> tuple[Any, Any]:
        """The latents as one K/V head, (1, n_kv, rank + n_rot), and V as its first columns."""
        (rows,) = self._arrays
        rank, n_rot = self._layer.kv_lora_rank, self._layer.rope.n_rot
        width = rows.shape[2] * rank // (rank + n_rot)
        whole = self._as_source(rows[:, :n_kv], rank + n_rot)
        return whole, self._as_source(rows[:, :n_kv, :width], rank)

    def _as_source(self, array: Any, d: int) -> Any:
        if self._kind.name in DENSE_DTYPES:
            return array
        return QuantTensor(array, self._kind.name, (*array.shape[:2], d))


def latent_types(layer: LayerConfig, kind: KVType, turned: bool) -> tuple[KVType, KVType]:
    """The types of `LayerCache.latent`'s K and V, as plans take them."""
    tensors, rank = layer.tensors, layer.kv_lora_rank
    k_b, v_b = tensors["k_b_turned" if turned else "k_b"], tensors["v_b"]
    return (
        latent_type(kind.name, k_b.format.name, rank, layer.d_nope, layer.rope.n_rot),
        latent_type(kind.name, v_b.format.name, rank, layer.d_v),
    )
