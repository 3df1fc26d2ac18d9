"""How a tile of attention lies in CPU scratch: pure arithmetic, shared by the plan and the kernel.

A tile is ``heads`` query heads of one K/V head by ``rows`` tokens, walked in chunks of ``keys``
keys. Its heads * rows query rows stand side by side in panels of 32 (16 where 16 or fewer rows are
all there is). One worker at a time owns, in float32:

=============  ==========================================================================
block          per worker
=============  ==========================================================================
kq             scores of one panel:            keys x panel
kv chunk       keys decoded for this chunk:    keys x k_stride, then keys x v_stride
tile           queries, one panel after another, d_k x panel each; the output so far,
               rows x v_stride
row state      maximum, sum, rescale factor, ALiBi slope, first key, last key, position
=============  ==========================================================================

and, where one tile's keys are split among workers, the partial outputs of all splits
("partial results"), merged at the end.

K or V whose type says `in_chunks` are decoded before a tile reads them: passes of some K/V heads and
tokens walk the keys a chunk at a time, all workers together. Then "k chunk" and "v chunk" hold the
decoded heads and keys, "decode k" and "decode v" are their readers' own, and "partial results" hold the pass's output,
maxima and sums from chunk to chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel.attention.kv_source import padded_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lowlevel.plans import Scratch


METHODS = ("auto", "steps")
# V inside K's rows is used in place from columns that are multiples of this.
V_COLUMN_STEP = 1
PRECISIONS = ("float32", "bf16")
# Whether the rows of K and V that are read must begin at multiples of their items: decoders here read any bytes.
KV_ALIGNED = False
# Query rows side by side in one panel of scores: two AVX-512 vectors.
PANEL = 32
# Chunks of keys are multiples of this, the register tile's rows.
KEY_STEP = 8
# float32 values in one 64-byte line; every worker's part of a block starts on one.
LINE = 16
# Per query row: maximum, sum, factor, slope (float32) and low, high, position (int32).
ROW_STATE_FLOATS = 4
ROW_STATE_INTS = 3

# The best tile, from `kqcap bench`: it keeps a worker's scratch inside a 1 MiB L2.
BEST_ROWS, BEST_KEYS = 256, 256
BEST_ROWS_WIDE, BEST_KEYS_WIDE = 128, 128  # d_k + d_v > WIDE, such as MLA's 576 + 512
WIDE = 512
# With 16 or fewer rows in all, K and V are read once: decoded chunks should stay in L1.
FEW_ROWS = 16
BEST_KEYS_FEW_ROWS = 64
# With 8 or fewer there are no panels (attention_few.py), and K and V of floats are read where they
# lie: in long runs.
FEWEST_ROWS = 8
BEST_KEYS_FEWEST_ROWS = 256
READ_IN_PLACE = tuple((name, name) for name in ("float32", "float16", "bfloat16"))
L1_CHUNK_FLOATS = 6 * 1024
# Fewer keys than this are not worth a split and a merge.
MIN_KEYS_PER_SPLIT = 512
# Keys of a decoded chunk: at best, and before heads and rows are given up for them.
PASS_KEYS, ENOUGH_PASS_KEYS = 1024, 128


class Tile(NamedTuple):
    """Query heads of one K/V head, tokens and keys in one tile, and key splits per tile.

    `pass_heads` (K/V heads), `pass_rows`, `pass_keys`: what is decoded and worked on at a time, 0 where
    nothing is decoded in chunks; `least_workers`: fewer are not worth it, the next tile is better.
    """

    heads: int
    rows: int
    keys: int
    splits: int
    pass_heads: int = 0
    pass_rows: int = 0
    pass_keys: int = 0
    least_workers: int = 1


class Widths(NamedTuple):
    """Row lengths in scratch, in float32 values."""

    panel: int  # query rows in a panel
    n_panels: int
    q_depth: int  # d_k, padded to whole vectors
    k_stride: int
    v_stride: int


def counts_keys(sizes: Mapping[str, Any]) -> bool:
    """Whether kernels read how many keys there are when they run: the call knows it here."""
    return False


def round_up(n: int, multiple: int) -> int:
    """`n` rounded up to a multiple."""
    return -(-n // multiple) * multiple


def round_down(n: int, multiple: int) -> int:
    """`n` rounded down to a multiple."""
    return n // multiple * multiple


def _chunk_stride(width):
    """Row length for a chunk of K or V: whole panels, off the powers of two that share cache sets."""
    stride = round_up(width, PANEL)
    return stride + LINE if stride % 256 == 0 else stride


def widths(heads: int, rows: int, d_k: int, d_v: int) -> Widths:
    """Row lengths of a tile's scratch; see the module's table."""
    n_rows = heads * rows
    panel = LINE if n_rows <= LINE else PANEL
    return Widths(
        panel=panel,
        n_panels=-(-n_rows // panel),
        q_depth=round_up(d_k, LINE),
        k_stride=_chunk_stride(d_k),
        v_stride=_chunk_stride(d_v),
    )


def worker_floats(tile: Tile, d_k: int, d_v: int, v_in_k: bool) -> dict[str, int]:
    """float32 values of one worker's part of each block.

    Parameters
    ----------
    tile : Tile
    d_k, d_v : int
        Head sizes of K and V.
    v_in_k : bool
        V is a range of K's columns (latent MLA): its chunk is read out of K's.
    """
    w = widths(tile.heads, tile.rows, d_k, d_v)
    padded_rows = w.panel * w.n_panels
    state_items = padded_rows * (ROW_STATE_FLOATS + ROW_STATE_INTS)
    floats = {
        "kq": tile.keys * w.panel,
        # One line more: the last row's last vector may reach past d_v.
        "kv chunk": tile.keys * (w.k_stride + (0 if v_in_k else w.v_stride)) + PANEL,
        "tile": padded_rows * (w.q_depth + w.v_stride),
        "row state": state_items,
    }
    return {tag: round_up(n, LINE) for tag, n in floats.items()}


def count_tiles(sizes: Mapping[str, Any], tile: Tile) -> int:
    """Number of (head, row) tiles."""
    group = sizes["n_head"] // sizes["n_head_kv"]
    row_tiles = -(-sizes["n_tokens"] // tile.rows)
    return sizes["n_head_kv"] * -(-group // tile.heads) * row_tiles


def tiles_at_once(sizes: Mapping[str, Any], tile: Tile) -> int:
    """Number of tiles that workers may share out among them at a time."""
    return count_tiles(_of_pass(sizes, tile), tile)


def _of_pass(sizes, tile):
    """The sizes of one pass."""
    if not tile.pass_keys:
        return sizes
    group = sizes["n_head"] // sizes["n_head_kv"]
    heads = dict(n_head_kv=tile.pass_heads, n_head=group * tile.pass_heads)
    return {**sizes, **heads, "n_tokens": tile.pass_rows}


def _partial_floats(sizes, tile):
    """Partial results of all splits: output row, maximum and sum of every row."""
    w = widths(tile.heads, tile.rows, sizes["d_k"], sizes["d_v"])
    per_split = w.panel * w.n_panels * (w.v_stride + 2)
    return tiles_at_once(sizes, tile) * tile.splits * per_split


def scratch_parts(sizes: Mapping[str, Any], tile: Tile) -> tuple[Scratch, Scratch]:
    """((tag, bytes) of what all workers share, (tag, bytes) of each worker)."""
    per_worker = worker_floats(tile, sizes["d_k"], sizes["d_v"], sizes["v_in_k"])
    shared = _chunk_scratch(sizes, tile) if tile.pass_keys else ()
    if tile.splits > 1 or 0 < tile.pass_keys < sizes["n_kv"]:
        shared += (("partial results", 4 * _partial_floats(sizes, tile)),)
    return shared, tuple((tag, 4 * n) for tag, n in per_worker.items())


def _chunk_scratch(sizes, tile):
    """Decoded chunks of K and V, and what their decoders take."""
    heads, keys, blocks = tile.pass_heads, tile.pass_keys, []
    for name, kind in zip("kv", sizes["kv_types"], strict=True):
        if kind.in_chunks:
            stride = padded_width(sizes[f"d_{name}"])
            own = kind.scratch_bytes(sizes["device"], heads, keys)
            blocks += [(f"{name} chunk", 4 * heads * keys * stride), (f"decode {name}", own)]
    return tuple(blocks)


def decided(sizes: Mapping[str, Any], tile: Tile) -> dict[str, Any]:
    """What a plan says besides its tile: the kernels that run, and the passes that decode K and V."""
    return dict(
        path=_path_of(sizes, tile),
        pass_heads=tile.pass_heads,
        pass_rows=tile.pass_rows,
        pass_keys=tile.pass_keys,
    )


def _path_of(sizes, tile):
    n_rows = tile.heads * tile.rows
    if n_rows <= FEWEST_ROWS:
        return f"few rows {_type_in_place(sizes)}"
    if sizes["precision"] == "bf16" and n_rows > FEW_ROWS:
        from . import bfloat  # loads Numba

        if bfloat.AVAILABLE:
            return "panels bf16"
    # Few query rows wait for memory, not for products: they are in float32.
    return "panels"


def _type_in_place(sizes):
    """The 16-bit type of both K and V whose rows are whole vectors and read where they lie, or float32."""
    whole = sizes["d_k"] % LINE == 0 and sizes["d_v"] % PANEL == 0
    dtypes = sizes["k_dtype"], sizes["v_dtype"]
    for name in ("float16", "bfloat16"):
        if whole and dtypes == (name, name):
            return name
    return "float32"


def _heads_and_rows(group, n_tokens, max_rows):
    """Whole heads while they fit in `max_rows` query rows, else rows of one head."""
    if n_tokens <= max_rows:
        return min(group, max(1, max_rows // n_tokens)), n_tokens
    return 1, max_rows


def _splits(n_tiles, n_threads, n_kv):
    """Key splits that give every thread about two pieces where tiles are few."""
    if n_threads == 1 or n_tiles >= 2 * n_threads:
        return 1
    return max(1, min(-(-2 * n_threads // n_tiles), n_kv // MIN_KEYS_PER_SPLIT))


def candidate_tiles(sizes: Mapping[str, Any]) -> Iterator[Tile]:
    """Tiles from the best to the smallest, best first; a plan takes the first that fits.

    Parameters
    ----------
    sizes : dict
        n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, n_threads, v_in_k as in `plan_attention`; kv_types,
        and their names as k_dtype and v_dtype.
    """
    if any(kind.in_chunks for kind in sizes["kv_types"]):
        yield from _pass_candidates(_as_decoded(sizes))
    else:
        yield from _whole_candidates(sizes)


def _as_decoded(sizes):
    """The sizes as kernels see them, K and V decoded in chunks being float32."""
    dtypes = ("float32" if kind.in_chunks else kind.name for kind in sizes["kv_types"])
    return {**sizes, **dict(zip(("k_dtype", "v_dtype"), dtypes, strict=True))}


def _pass_candidates(sizes):
    """Passes with all workers, from the best on; then the same and smaller tiles with those that fit."""
    group = sizes["n_head"] // sizes["n_head_kv"]
    tiles = [tile for tile in _whole_candidates(sizes) if tile.splits == 1]
    shrinking = [*_shrinking_passes(sizes, tiles[0], group)]
    for tile in shrinking:
        yield tile._replace(least_workers=sizes["n_threads"])
    yield from shrinking
    for tile in tiles[1:]:
        pass_ = tile._replace(pass_heads=1, pass_rows=tile.rows, pass_keys=KEY_STEP)
        yield pass_._replace(pass_keys=max(KEY_STEP, tile.keys))
        yield pass_._replace(keys=KEY_STEP)


def _shrinking_passes(sizes, best, group):
    """Passes over tiles of the best size: shorter chunks, then fewer heads, fewer rows, single tiles of keys."""
    most_keys = round_up(max(sizes["n_kv"], 1), KEY_STEP)
    tiles_of_head = -(-group // best.heads) * -(-sizes["n_tokens"] // best.rows)
    heads = min(sizes["n_head_kv"], -(-2 * sizes["n_threads"] // tiles_of_head))
    rows, keys = sizes["n_tokens"], min(PASS_KEYS, most_keys)
    while True:
        yield best._replace(
            pass_heads=heads, pass_rows=rows, pass_keys=keys, keys=min(best.keys, keys)
        )
        if keys > ENOUGH_PASS_KEYS:
            keys = round_up(keys // 2, KEY_STEP)
        elif heads > 1:
            heads = -(-heads // 2)
        elif rows > best.rows:
            rows = max(best.rows, round_up(rows // 2, best.rows))
        elif keys > KEY_STEP:
            keys = round_up(keys // 2, KEY_STEP)
        else:
            return


def _whole_candidates(sizes):
    """Tiles of the whole call; K and V are read, or decoded row by row, by the tiles themselves."""
    group, n_tokens = sizes["n_head"] // sizes["n_head_kv"], sizes["n_tokens"]
    most_keys = round_up(max(sizes["n_kv"], 1), KEY_STEP)
    wide = sizes["d_k"] + sizes["d_v"] > WIDE
    best_rows = BEST_ROWS_WIDE if wide else BEST_ROWS
    best_keys = BEST_KEYS_WIDE if wide else BEST_KEYS
    if group * n_tokens <= FEW_ROWS:
        best_keys = BEST_KEYS_FEW_ROWS
        dtypes = sizes["k_dtype"], sizes["v_dtype"]
        if group * n_tokens <= FEWEST_ROWS and dtypes in READ_IN_PLACE:
            best_keys = BEST_KEYS_FEWEST_ROWS
        elif dtypes != ("float32", "float32"):
            w = widths(group, n_tokens, sizes["d_k"], sizes["d_v"])
            in_l1 = L1_CHUNK_FLOATS // (w.k_stride + (0 if sizes["v_in_k"] else w.v_stride))
            best_keys = min(best_keys, max(2 * KEY_STEP, round_down(in_l1, KEY_STEP)))
    best = Tile(*_heads_and_rows(group, n_tokens, best_rows), min(best_keys, most_keys), 1)
    n_splits = _splits(count_tiles(sizes, best), sizes["n_threads"], sizes["n_kv"])
    while n_splits > 1:
        yield best._replace(splits=n_splits)
        n_splits //= 2
    yield best

    smaller = {
        # Halves of 24 or 40 keys are no whole register tiles, which would write past the scores.
        Tile(
            *_heads_and_rows(group, n_tokens, best_rows >> i),
            min(round_down(best_keys >> j, KEY_STEP), most_keys),
            1,
        )
        for i in range(best_rows.bit_length())
        for j in range((best_keys // KEY_STEP).bit_length())
    }
    yield from sorted(smaller - {best}, key=lambda tile: (_overhead(tile), tile))


def _overhead(tile):
    """Work beside the products, relative: decoding every key again for each few rows, and touching
    the output again for each few keys."""
    return 3 / (tile.heads * tile.rows) + 1 / tile.keys
