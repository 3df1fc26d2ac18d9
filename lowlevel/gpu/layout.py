"""How attention is cut up on devices that run CUDA kernels: pure arithmetic, shared by plan and launches.

Two ways. *Fused* (16-bit queries, keys and values of one type, head sizes of
`instances.FUSED_SHAPES`): one launch, scores stay on the chip, and no scratch, unless too few tiles
keep the device busy: then the keys are split, and the states of all splits lie in scratch, merged by
a second launch. Quantised keys and values are decoded into scratch, chunk by chunk, by passes of some
heads and tokens whose states lie in scratch from chunk to chunk.

*Tiles* (everything else): scores of `heads` x `rows` x `keys` lie in scratch, as float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .instances import FEW_ROWS_SHAPES, FUSED_SHAPES, WGMMA, WGMMA_SHAPES, WGMMA_STAGES, FusedShape
from .launch_device import launch_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lowlevel.plans import Scratch

    from .instances import Kernel


METHODS = ("auto",)
# V inside K's rows is used in place from columns that are multiples of this: 16 bytes.
V_COLUMN_STEP = 8
PRECISIONS = ("float32",)
KV_ALIGNED = True
# The least keys worth a split; latents, read by one head for all, are four times as wide, and one tile has all queries.
MIN_KEYS_PER_SPLIT, MIN_LATENTS_PER_SPLIT = 512, 256
# Decoded K and V: keys of a chunk, at most, worth giving heads and splits up for, and at least.
MOST_KEYS_OF_A_CHUNK, WORTHWHILE_KEYS, LEAST_KEYS_OF_A_CHUNK = 8192, 1024, 64
# Of a row, what a block merges of the splits' states: attention_merge.cu's kPart.
MERGED_COLUMNS = 128
# Tiles path: sizes of the K*Q tile that are tried, in scores. 32 MiB of them stay in a large GPU's L2, but 64 MiB,
# with twice the heads or keys, take an H100 less time.
SCORES_OF_A_TILE = tuple(2**i for i in range(24, 3, -1))
# Keys that heads are not given up for: V's product has rows * d_v numbers to make of each head, too few for a GPU.
# And the most, where all heads have place: kThreads * kHeld of attention_softmax.cu.
ENOUGH_KEYS, MOST_KEYS, LEAST_KEYS = 1024, 2048, 16
# Of cuBLAS, in bytes: less than the least and products may fail.
LEAST_WORKSPACE, MOST_WORKSPACE = 16 << 10, 4 << 20


# `AttentionPlan.path`
FUSED_WGMMA, FUSED_MMA, FUSED_FEW_ROWS = "fused wgmma", "fused mma.sync", "fused few rows"
TILES = "tiles"


class Tile(NamedTuple):
    """Query heads, tokens and keys whose scores are worked on together, and key splits per tile.

    `heads` is at most the heads that share one K/V head, or a multiple of them.
    """

    heads: int
    rows: int
    keys: int
    splits: int
    least_workers: int = 1


def is_fused(sizes: Mapping[str, Any]) -> bool:
    """Whether a call of these sizes (see `candidate_tiles`) takes the fused kernels."""
    q_dtype = sizes["q_dtype"]
    if q_dtype not in ("float16", "bfloat16") or fused_shape(sizes) is None:
        return False
    if sizes["out_dtype"] not in (q_dtype, "float32"):  # what store_out can write
        return False
    return all(kind.name == q_dtype or not kind.is_dense for kind in sizes["kv_types"])


def is_decoded(sizes: Mapping[str, Any]) -> bool:
    """Whether K or V are decoded into scratch a chunk at a time."""
    return bool(_decoded(sizes))


def _decoded(sizes):
    """Which of "k" and "v" are decoded; V inside K is not decoded again."""
    names = "k" if sizes["v_in_k"] else "kv"
    types = zip(names, sizes["kv_types"], strict=False)
    return [name for name, kind in types if not kind.is_dense]


def fused_shape(sizes: Mapping[str, Any]) -> FusedShape | None:
    """The FusedShape of the fused kernel for these sizes on this device, or None."""
    d_k, d_v = sizes["d_k"], sizes["d_v"]
    shape = FUSED_SHAPES.get((d_k, d_v))
    if shape is None or (shape.latent and not sizes["v_in_k"]):
        return None
    rows = sizes["n_head"] // sizes["n_head_kv"] * sizes["n_tokens"]  # of a K/V head
    shape = next((few for few in FEW_ROWS_SHAPES.get((d_k, d_v), ()) if rows <= few.rows), shape)
    most = launch_device(sizes["device"]).max_shared_bytes
    return shape if fused_shared_bytes(sizes, shape, 1) <= most else None


def counts_keys(sizes: Mapping[str, Any]) -> bool:
    """Whether the kernels can read how many keys there are where they run: see `lowlevel.attention`'s n_kv."""
    if not is_fused(sizes) or is_decoded(sizes):
        return False
    shape = fused_shape(sizes)
    return shape is not None and shape.counts_keys


def fused_stages(sizes: Mapping[str, Any], shape: FusedShape) -> int:
    """Tiles of K that the latent kernel keeps in shared memory: two where the device holds them."""
    most = launch_device(sizes["device"]).max_shared_bytes
    return 2 if shape.latent and fused_shared_bytes(sizes, shape, 2) <= most else 1


def fused_shared_bytes(sizes: Mapping[str, Any], shape: FusedShape, stages: int) -> int:
    """Dynamic shared memory of a fused kernel: tiles of Q, K, and of V or of weights, 16-bit."""
    d_k, d_v = sizes["d_k"], sizes["d_v"]
    if shape.latent:
        exchange = 4 * 5 * shape.rows
        return 2 * (shape.rows * (d_k + shape.keys) + stages * shape.keys * d_k) + exchange
    return 2 * (shape.rows * d_k + shape.keys * (shape.k_stages * d_k + d_v))


def wgmma_shared_bytes(sizes: Mapping[str, Any]) -> int:
    """As `fused_shared_bytes`, of a kernel of warpgroups; barriers and what warps tell each other besides."""
    d_k, d_v = sizes["d_k"], sizes["d_v"]
    shape = WGMMA_SHAPES[d_k, d_v]
    if shape.latent:
        exchange = 4 * (4 * shape.rows + 2 * 4)
        barriers = 8 * (1 + WGMMA_STAGES * (d_k // 64 + 2))
        return (
            2 * (shape.rows * (d_k + shape.keys) + WGMMA_STAGES * shape.keys * d_k)
            + exchange
            + barriers
        )
    copies = 8 * (1 + 5 * WGMMA_STAGES) + 16 * WGMMA_STAGES
    return 2 * (shape.rows * d_k + WGMMA_STAGES * shape.keys * (d_k + d_v)) + copies


def kernel_of_warpgroups(sizes: Mapping[str, Any]) -> Kernel | None:
    """The kernel on a warpgroup's products, where the device runs it; or None."""
    kernel = WGMMA.get((sizes["d_k"], sizes["d_v"], sizes["q_dtype"], False))
    device = launch_device(sizes["device"])
    if kernel is None or not device.runs(kernel):
        return None
    shape = fused_shape(sizes)
    if shape is None or shape.rows != WGMMA_SHAPES[sizes["d_k"], sizes["d_v"]].rows:
        return None
    return kernel if wgmma_shared_bytes(sizes) <= device.max_shared_bytes else None


def count_tiles(sizes: Mapping[str, Any], tile: Tile) -> int:
    """Number of (head, row) tiles."""
    group = sizes["n_head"] // sizes["n_head_kv"]
    if tile.heads > group:
        head_tiles = -(-sizes["n_head"] // tile.heads)
    else:
        head_tiles = sizes["n_head_kv"] * -(-group // tile.heads)
    return head_tiles * -(-sizes["n_tokens"] // tile.rows)


tiles_at_once = count_tiles


def decided(sizes: Mapping[str, Any], tile: Tile) -> dict[str, Any]:
    """What a plan says besides its tile: the kernels that run, heads in one of theirs, and how many tiles of K they hold."""
    shape = fused_shape(sizes) if is_fused(sizes) else None
    if shape is None:
        return dict(path=TILES)
    group = min(sizes["n_head"] // sizes["n_head_kv"], tile.heads)
    heads = packed_heads(group, tile.rows, shape.rows) if is_decoded(sizes) else tile.heads
    if kernel_of_warpgroups(sizes):
        return dict(path=FUSED_WGMMA, packed_heads=heads, stages=WGMMA_STAGES)
    is_few = shape.rows < FUSED_SHAPES[sizes["d_k"], sizes["d_v"]].rows
    stages = fused_stages(sizes, shape) if shape.latent else shape.k_stages
    return dict(path=FUSED_FEW_ROWS if is_few else FUSED_MMA, packed_heads=heads, stages=stages)


def scratch_parts(sizes: Mapping[str, Any], tile: Tile) -> tuple[Scratch, Scratch]:
    """((tag, bytes) of the call's blocks, ()): nothing is per worker here."""
    if is_fused(sizes):
        return _fused_scratch(sizes, tile), ()
    return _tiles_scratch(sizes, tile), ()


def candidate_tiles(sizes: Mapping[str, Any]) -> Iterator[Tile]:
    """Tiles from the best to the smallest, best first; a plan takes the first that fits.

    Parameters
    ----------
    sizes : dict
        n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, n_threads, q_dtype, k_dtype, v_dtype, out_dtype,
        v_in_k as in `plan_attention`; n_threads: multiprocessors.
    """
    return _fused_candidates(sizes) if is_fused(sizes) else _tiles_candidates(sizes)


# ---------------------------------------------------------------- fused


def _fused_candidates(sizes):
    if is_decoded(sizes):
        yield from _decoded_candidates(sizes)
        return
    shape = fused_shape(sizes)
    heads = packed_heads(sizes["n_head"] // sizes["n_head_kv"], sizes["n_tokens"], shape.rows)
    by_warpgroups = kernel_of_warpgroups(sizes)
    keys = WGMMA_SHAPES[sizes["d_k"], sizes["d_v"]].keys if by_warpgroups else shape.keys
    tile = Tile(heads, min(sizes["n_tokens"], shape.rows // heads), keys, 1)
    least = MIN_LATENTS_PER_SPLIT if shape.latent else MIN_KEYS_PER_SPLIT
    n_splits = min(_slots(sizes) // count_tiles(sizes, tile), sizes["n_kv"] // least)
    while n_splits > 1:
        yield tile._replace(splits=n_splits)
        n_splits //= 2
    yield tile


def _slots(sizes):
    """Blocks that the device works on at a time."""
    if kernel_of_warpgroups(sizes):
        # One a multiprocessor: a second one would wait for the first, and then be merged.
        return sizes["n_threads"]
    return fused_shape(sizes).blocks * sizes["n_threads"]


def packed_heads(group: int, n_tokens: int, rows: int) -> int:
    """Heads of a group in one tile of `rows` query rows: the fewest tiles, then the most heads."""

    def n_tiles(heads):
        return -(-group // heads) * -(-n_tokens // (rows // heads))

    return min(range(1, min(group, rows) + 1), key=lambda heads: (n_tiles(heads), -heads))


def keys_per_split(n_keys: int, n_splits: int, tile_keys: int) -> int:
    """Keys of each split: whole tiles of keys."""
    tiles = -(-max(n_keys, 1) // tile_keys)
    return -(-tiles // n_splits) * tile_keys


def _decoded_candidates(sizes):
    """Passes that decode K and V a chunk at a time: `Tile` gives their heads, tokens and keys.

    The best one has heads whose tiles leave the device idle the least, over long chunks. Then whatever takes most
    shrinks.
    """
    group = sizes["n_head"] // sizes["n_head_kv"]
    n_tokens, n_kv = sizes["n_tokens"], max(sizes["n_kv"], 1)
    tiles_of_group = -(-group * n_tokens // fused_shape(sizes).rows)
    slots = _slots(sizes)
    n_kv_heads = _heads_of_a_pass(sizes["n_head_kv"], tiles_of_group, slots)
    keys = min(MOST_KEYS_OF_A_CHUNK, -(-n_kv // LEAST_KEYS_OF_A_CHUNK) * LEAST_KEYS_OF_A_CHUNK)
    splits = min(slots // (tiles_of_group * n_kv_heads), keys // MIN_KEYS_PER_SPLIT)
    tile = Tile(group * n_kv_heads, n_tokens, keys, max(1, splits))
    while tile is not None:
        yield tile
        tile = _shrunk(sizes, tile, group)


def _heads_of_a_pass(n_head_kv, tiles_of_group, slots):
    """K/V heads of a pass, of two rounds of tiles at most: the fewest rounds of all passes, then the fewest passes."""

    def rounds(heads):
        n_whole, rest = divmod(n_head_kv, heads)
        return n_whole * -(-heads * tiles_of_group // slots) + -(-rest * tiles_of_group // slots)

    most = min(n_head_kv, -(-2 * slots // tiles_of_group))
    return min(range(1, most + 1), key=lambda heads: (rounds(heads), -heads))


def _shrunk(sizes, tile, group):
    """The next smaller pass, or None."""
    chunk, state = (
        sum(n for tag, n in _fused_scratch(sizes, tile) if tag.endswith("chunk") is is_chunk)
        for is_chunk in (True, False)
    )
    few = _half(tile.keys, LEAST_KEYS_OF_A_CHUNK)
    if chunk >= state and tile.keys > WORTHWHILE_KEYS:
        return tile._replace(keys=few, splits=max(1, min(tile.splits, few // MIN_KEYS_PER_SPLIT)))
    if tile.splits > 1:
        return tile._replace(splits=tile.splits // 2)
    if tile.heads > group:
        return tile._replace(heads=_half(tile.heads, group))
    if tile.keys > LEAST_KEYS_OF_A_CHUNK and (chunk >= state or tile.rows * tile.heads == 1):
        return tile._replace(keys=few)
    if tile.rows > 1:
        return tile._replace(rows=_half(tile.rows, 1))
    if tile.heads > 1:
        return tile._replace(heads=_half(tile.heads, 1))
    return None


def _half(n, unit):
    """Half of `n`, as a multiple of `unit`."""
    return -(-n // (2 * unit)) * unit


def _fused_scratch(sizes, tile):
    decoded = is_decoded(sizes)
    n_head, n_tokens = sizes["n_head"], sizes["n_tokens"]
    parts = []
    if decoded:
        n_head, n_tokens = tile.heads, tile.rows
        keys = kv_heads_of(sizes, tile) * min(tile.keys, max(sizes["n_kv"], 1))
        parts = [(f"{name} chunk", 2 * keys * sizes[f"d_{name}"]) for name in _decoded(sizes)]
        parts += _decoders_own(sizes, tile, sizes["q_dtype"])
    if tile.splits > 1 or (decoded and tile.keys < sizes["n_kv"]):
        rows = tile.splits * n_head * n_tokens
        parts += [("partial results", 4 * rows * sizes["d_v"]), ("row state", 4 * rows * 2)]
    return tuple(parts)


# ---------------------------------------------------------------- tiles


def _tiles_candidates(sizes):
    seen = set()
    for n_scores in SCORES_OF_A_TILE:
        tile = _tile_of(sizes, n_scores)
        if tile not in seen:
            seen.add(tile)
            yield tile


def _tile_of(sizes, n_scores):
    """At most about `n_scores` scores: as many keys as rows, then rows, then heads, then keys again."""
    group, n_kv = sizes["n_head"] // sizes["n_head_kv"], max(sizes["n_kv"], 1)
    keys = ENOUGH_KEYS
    while keys > LEAST_KEYS and keys * keys > n_scores:
        keys //= 2
    keys = min(keys, n_kv)
    rows = max(1, min(sizes["n_tokens"], n_scores // keys))
    heads = max(1, n_scores // (keys * rows))
    if heads > group:  # whole groups, a K/V head each
        heads = group * min(heads // group, sizes["n_head_kv"])
    while keys < min(n_kv, MOST_KEYS) and 2 * heads * rows * keys <= n_scores:
        keys = min(2 * keys, n_kv)
    return Tile(heads, rows, keys, 1)


def kv_heads_of(sizes: Mapping[str, Any], tile: Tile) -> int:
    """K/V heads in one tile."""
    return max(1, tile.heads // (sizes["n_head"] // sizes["n_head_kv"]))


def _decoders_own(sizes, tile, dtype):
    """What decoding one chunk of a dtype takes besides the chunk."""
    chunk = kv_heads_of(sizes, tile), min(tile.keys, max(sizes["n_kv"], 1))
    own = [kind.scratch_bytes(sizes["device"], *chunk, dtype) for kind in sizes["kv_types"]]
    return [(f"decode {name}", n) for name, n in zip("kv", own, strict=True) if n]


def _tiles_scratch(sizes, tile):
    rows, keys = tile.heads * tile.rows, kv_heads_of(sizes, tile) * tile.keys
    n_scores = rows * tile.keys
    workspace = 4 * (n_scores // 8)  # whole floats, as all blocks are
    return (
        ("kq", 4 * n_scores),
        ("q tile", 4 * rows * sizes["d_k"]),
        ("tile", 4 * rows * sizes["d_v"]),
        ("row state", 4 * rows * 2),
        ("kv chunk", 4 * keys * max(sizes["d_k"], sizes["d_v"])),
        ("not finite", 4 * keys),
        ("gemm workspace", min(max(workspace, LEAST_WORKSPACE), MOST_WORKSPACE)),
        *_decoders_own(sizes, tile, "float32"),
    )
