"""The compiled walk over attention's tiles: one call of `attend` is one worker at work.

A task is a tile (query heads of one K/V head x tokens, see layout.py) or one of its key splits.
For each chunk of keys the worker decodes K and V into its scratch once, then takes the tile's query
rows panel by panel::

    scores (keys x panel) = K chunk . queries       gemm_tile, K row-major, queries transposed
    weights               = online softmax, in place
    output (rows x d_v)  *= rescale, += weights^T . V chunk

Only one panel's scores exist at a time: they stay in L1/L2. Chunks, and within them panels, that
causality or a window leave out are never touched. Few query rows have no use for panels: see
attention_few.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import simd, softmax
from .attention_call import (
    Tile,
    call_at,
    floats_at,
    ints_at,
    key_range,
    mask_row,
    padded_rows_of,
    state_rows,
    tile_place,
)
from .gemm_tile import TILE_COLUMNS, TILE_ROWS, TILE_VECTORS, make_gemm_tile
from .jit import kernel, task_kernel

# A worker goes back to Python after about this many multiply-adds (some 20 ms).
SLICE_WORK = 1_000_000_000
# Up to this many query rows, float32 K and V are read where they lie.
ROWS_READING_IN_PLACE = 16

_gemm = make_gemm_tile(TILE_ROWS, TILE_VECTORS)
_gemm_narrow = _gemm if TILE_VECTORS == 1 else make_gemm_tile(TILE_ROWS, 1)
_ZERO, _ONE = np.float32(0), np.float32(1)
_INF, _MINUS_INF, _NAN = np.float32(np.inf), np.float32(-np.inf), np.float32(np.nan)


class Chunk(NamedTuple):
    """Where a chunk's float32 rows of K and V lie: addresses, and row lengths in float32 values;
    and where K and V go on after it (encoded, as the caller gave them)."""

    k: int
    k_step: int
    v: int
    v_step: int
    next_k: int
    next_v: int


class Steps(NamedTuple):
    """What differs between kernels, as inlined ones; see those of `attend`."""

    pack_queries: Any
    open_chunk: Any
    add_chunk: Any


class Products(NamedTuple):
    """The part of `add_chunk` that differs with the precision of the products."""

    scores: Any
    all_finite: Any
    add_products: Any
    add_products_carefully: Any


@kernel(inline=True)
def clear(array, start, n):
    """Zero whole vectors (loops over vectors compile far faster than what LLVM makes of scalars)."""
    for i in range(start, start + n, 16):
        simd.store(array, i, simd.splat(_ZERO))


@kernel(inline=True)
def _start_rows(call, rows, padded_rows, state, state_int, head, n_heads, token, n_tokens):
    """Row state of a fresh tile: nothing seen yet, and which keys each row may see."""
    for r in range(0, padded_rows, 16):
        simd.store(state, rows.row_max + r, simd.splat(_MINUS_INF))
    # The rest starts at 0, also for rows that only fill up a panel: they see no key.
    clear(state, rows.row_sum, 6 * padded_rows)
    for r in range(n_heads * n_tokens):
        h = head + r // n_tokens
        position = call.first_position + token + r % n_tokens
        high = call.n_kv
        if call.causal:
            high = min(high, max(position + 1, 0))
        state_int[rows.low + r] = min(max(position - call.window + 1, 0), call.n_kv)
        state_int[rows.high + r] = high
        state_int[rows.position + r] = position
        if call.slopes:
            state[rows.slope + r] = simd.read_f32(call.slopes, h)


@kernel(inline=True)
def _pack_queries(call, q_rows, tile, base, head, n_tokens, token, padded_rows):
    """Queries into scratch: panels of (d_k, panel)."""
    depth, panel = call.q_depth, call.panel
    clear(tile, base, padded_rows * depth)
    for r in range(q_rows):
        source = (head + r // n_tokens) * call.q_head + (token + r % n_tokens) * call.q_token
        at = base + (r // panel) * (depth * panel) + r % panel
        for i in range(call.d_k):
            tile[at + i * panel] = simd.read_f32(call.q, source + i)


@kernel(inline=True)
def open_chunk(call, scratch, kv_head, key, n_keys, q_rows):
    """Keys key .. key + n_keys as float32 rows: decoded into scratch, or where they lie.

    Many query rows pay for the copy by reading it often, close together; where there are few, K
    and V are read about once, and float32 rows are better left alone.
    """
    in_place = q_rows <= ROWS_READING_IN_PLACE and n_keys % TILE_ROWS == 0
    k = call.k + kv_head * call.k_head + key * call.k_key
    v = call.v + kv_head * call.v_head + key * call.v_key
    next_k, next_v = k + n_keys * call.k_key, v + n_keys * call.v_key
    k_step, v_step = call.k_key // 4, call.v_key // 4
    if not (in_place and call.k_direct):
        simd.call_fill(call.k_fill, k, call.k_key, n_keys, call.d_k, scratch, call.k_stride)
        k, k_step = scratch, call.k_stride
    if call.v_column >= 0:
        v, v_step = k + 4 * call.v_column, k_step
    elif not (in_place and call.v_direct):
        scratch += 4 * call.keys * call.k_stride
        simd.call_fill(call.v_fill, v, call.v_key, n_keys, call.d_v, scratch, call.v_stride)
        v, v_step = scratch, call.v_stride
    return Chunk(k, k_step, v, v_step, next_k, next_v)


@kernel(inline=True)
def _skip_keys(chunk, n):
    k, v = chunk.k + 4 * n * chunk.k_step, chunk.v + 4 * n * chunk.v_step
    return Chunk(k, chunk.k_step, v, chunk.v_step, chunk.next_k, chunk.next_v)


@kernel(inline=True)
def prefetch_key(call, chunk, j):
    """Ask for key `j` of the next chunk. Few query rows wait for memory, and the hardware's own
    prefetching starts over at each chunk of K and of V."""
    for line in range(0, call.k_bytes, 64):
        simd.prefetch(chunk.next_k + j * call.k_key + line)
    if call.v_column < 0:
        for line in range(0, call.v_bytes, 64):
            simd.prefetch(chunk.next_v + j * call.v_key + line)


@kernel(inline=True)
def _scores(call, queries, chunk, out, n_keys):
    """K chunk . queries of one panel: `n_keys` lines (rounded up to the register tile); addresses."""
    panel, depth, k_step = call.panel, call.d_k, chunk.k_step
    for j in range(0, n_keys, TILE_ROWS):
        k, line = chunk.k + 4 * j * k_step, out + 4 * j * panel
        if panel == 16:
            for ahead in range(TILE_ROWS):
                prefetch_key(call, chunk, j + ahead)
            _gemm_narrow(k, k_step, 1, queries, panel, line, panel, depth, False)
        else:
            for column in range(0, 4 * panel, 4 * TILE_COLUMNS):
                _gemm(
                    k, k_step, 1, queries + column, panel, line + column, panel, depth, False
                )  # fmt: skip


@kernel(inline=True)
def rescale(tile, output, v_stride, n_rows, state, by):
    """Multiply `n_rows` output rows by what `state` holds from `by` on."""
    for r in range(n_rows):
        x = state[by + r]
        if x != _ONE:
            at = output + r * v_stride
            for j in range(0, v_stride, 16):
                simd.store(tile, at + j, simd.load_f32x16(tile, at + j) * x)


@kernel(inline=True)
def _add_products(call, weights, chunk, output, n_rows, n_keys):
    """Output rows += weights^T . V chunk, for one panel; addresses."""
    panel, stride, v_step = call.panel, call.v_stride, chunk.v_step
    for column in range(0, 4 * call.d_v, 4 * TILE_COLUMNS):
        v, o = chunk.v + column, output + column
        for r in range(0, n_rows, TILE_ROWS):
            _gemm(
                weights + 4 * r, 1, panel, v, v_step, o + 4 * r * stride, stride, n_keys, True
            )  # fmt: skip


def make_value_steps(value: Any) -> tuple[Any, Any]:
    """(all_finite, add_products_carefully); `value(chunk, j, i)`: row j of V from column i on."""

    @kernel(inline=True)
    def all_finite(call, chunk, n_keys):
        """Whether V's rows hold no NaN and no inf."""
        bad = simd.splat(_ZERO)
        for i in range(0, call.d_v, 16):
            inside = simd.iota() < (call.d_v - i)
            for j in range(n_keys):
                x = value(chunk, j, i)
                bad = simd.select(inside, bad + (x - x), bad)  # x - x is 0 or NaN
        return simd.sum_lanes(bad) == _ZERO

    @kernel(inline=True)
    def add_products_carefully(call, kq, weights, steps, chunk, tile, output, n_rows, n_keys):
        """As `add_products` where V holds NaN or inf: a left-out key (weight 0) adds nothing.

        `steps`: between the weights of two rows, and of two keys.
        """
        for r in range(n_rows):
            for j in range(n_keys):
                p = kq[weights + r * steps[0] + j * steps[1]]
                if p != _ZERO:
                    for i in range(0, call.d_v, 16):  # past d_v lie unused columns
                        at = output + r * call.v_stride + i
                        simd.store(tile, at, simd.load_f32x16(tile, at) + value(chunk, j, i) * p)

    return all_finite, add_products_carefully


@kernel(inline=True)
def _value(chunk, j, i):
    return simd.read_f32x16(chunk.v, j * chunk.v_step + i)


_all_finite, _add_products_carefully = make_value_steps(_value)


@kernel(inline=True)
def _write_row(call, source, source_row, head, token, row_max, row_sum):
    """Divide an output row by its sum, bring in the sink, and write it (and its lse) out."""
    if row_max == _INF:  # scores past float32: whatever was summed up means nothing
        row_sum = _NAN
    elif row_max == _MINUS_INF:
        # No key, or all below float32, which count as left out; NaN stays NaN.
        row_sum *= _ZERO
    rescaled = _ONE
    sink = simd.read_f32(call.sinks, head) if call.sinks else _MINUS_INF
    if sink != _MINUS_INF:
        largest = max(row_max, sink)
        rescaled = np.exp(row_max - largest)
        row_sum = row_sum * rescaled + np.exp(sink - largest)
        row_max = largest
    scale = _ZERO
    if row_sum != _ZERO:  # true for NaN as well
        scale = rescaled / row_sum
    target = head * call.out_head + token * call.out_token
    for i in range(0, call.d_v, 16):
        x = simd.splat(_ZERO)  # nothing attended to, unless:
        if scale != _ZERO:
            x = simd.load_f32x16(source, source_row + i) * scale
        simd.write_first_f32(call.out, target + i, x, call.d_v - i)
    if call.lse:
        lse = _MINUS_INF if row_sum == _ZERO else row_max + np.log(row_sum)
        simd.write_f32(call.lse, head * call.lse_head + token, lse)


@kernel(inline=True)
def _save_partial(source, output, v_stride, padded_rows, state, rows, partial, base):
    """One split's output rows, maxima and sums, for `merge`."""
    for i in range(0, padded_rows * v_stride, 16):
        simd.store(partial, base + i, simd.load_f32x16(source, output + i))
    base += padded_rows * v_stride
    for r in range(0, 2 * padded_rows, 16):  # sums follow maxima in both places
        simd.store(partial, base + r, simd.load_f32x16(state, rows.row_max + r))


@kernel(inline=True)
def _load_partial(partial, base, v_stride, padded_rows, target, output, state, rows):
    """What `_save_partial` saved."""
    for i in range(0, padded_rows * v_stride, 16):
        simd.store(target, output + i, simd.load_f32x16(partial, base + i))
    base += padded_rows * v_stride
    for r in range(0, 2 * padded_rows, 16):
        simd.store(state, rows.row_max + r, simd.load_f32x16(partial, base + r))


@kernel(inline=True)
def _add_panel(
    products, call, kq, kq_base, chunk, tile, t, state, state_int, rows, r0, n_rows,
    key, n_keys, masked, careful,
):  # fmt: skip
    """Scores, softmax and products of one panel against `n_keys` keys of the chunk."""
    kq_address, tile_address = simd.address(kq) + 4 * kq_base, simd.address(tile)
    queries = tile_address + 4 * (t.queries + r0 * call.q_depth)
    output = t.output + r0 * call.v_stride
    products.scores(call, queries, chunk, kq_address, n_keys)
    scale = call.scale
    if call.softcap > _ZERO or call.slopes or call.mask or scale <= _ZERO:
        softmax.transform(
            kq, kq_base, call.panel, n_keys, scale, call.softcap,
            state, rows.slope + r0, state_int, rows.position + r0, key,
        )  # fmt: skip
        scale = _ONE
    if call.mask:
        for r in range(n_rows):
            row = mask_row(call, t, r0 + r, key)
            softmax.add_mask_row(kq, kq_base + r, call.panel, n_keys, row, call.mask_key)
    if masked:
        softmax.leave_out(
            kq, kq_base, call.panel, n_keys,
            state_int, rows.low + r0, state_int, rows.high + r0, key,
        )  # fmt: skip
    if softmax.update(
        kq, kq_base, call.panel, n_keys, scale, masked or call.mask != 0,
        state, rows.row_max + r0, state, rows.row_sum + r0, state, rows.rescale + r0,
    ):  # fmt: skip
        rescale(tile, output, call.v_stride, n_rows, state, rows.rescale + r0)
    if careful:
        products.add_products_carefully(
            call, kq, kq_base, (1, call.panel), chunk, tile, output, n_rows, n_keys
        )
    else:
        products.add_products(call, kq_address, chunk, tile_address + 4 * output, n_rows, n_keys)


def make_add_chunk(products: Any) -> Any:
    """`Steps.add_chunk` by panels, with some `Products`."""

    @kernel(inline=True)
    def add_chunk(call, kq, kq_base, chunk, tile, t, state, state_int, rows, key, n_keys):
        """Bring `n_keys` keys from `key` on, open in `chunk`, into the tile's output rows."""
        checked, careful = False, False
        for r0 in range(0, t.q_rows, call.panel):
            n_rows = min(call.panel, t.q_rows - r0)
            low, high, all_seen = key_range(state_int, rows, r0, n_rows, key, n_keys)
            if high <= low:
                continue
            masked = not all_seen
            if (masked or call.mask) and not checked:
                careful = not products.all_finite(call, chunk, n_keys)
                checked = True
            _add_panel(
                products, call, kq, kq_base, _skip_keys(chunk, low - key), tile, t,
                state, state_int, rows, r0, n_rows, low, high - low, masked,
                careful and (masked or call.mask != 0),
            )  # fmt: skip

    return add_chunk


@kernel(inline=True)
def work_on_tasks(steps, job, counter, worker):
    """Work on tasks from `counter` until about `SLICE_WORK`; True if more may be left.

    Parameters
    ----------
    steps : Steps
    job : int
        See `JOB`.
    counter : int
        Address of the number of the next task.
    worker : int
        Whose part of the scratch to use.
    """
    call, kq, chunk = (
        call_at(simd.read_i64(job)),
        floats_at(simd.read_i64(job + 8)),
        simd.read_i64(job + 16),
    )
    tile, partial = floats_at(simd.read_i64(job + 24)), floats_at(simd.read_i64(job + 40))
    state, state_int = floats_at(simd.read_i64(job + 32)), ints_at(simd.read_i64(job + 32))
    padded_rows = padded_rows_of(call)
    kq_base, chunk_base = worker * call.kq_floats, worker * call.chunk_floats
    tile_base, state_base = worker * call.tile_floats, worker * call.state_floats
    out_base = tile_base + padded_rows * call.q_depth
    rows = state_rows(state_base, padded_rows)
    chunk_address = chunk + 4 * chunk_base

    n_tasks = call.n_head_kv * call.head_tiles * call.row_tiles * call.splits
    work = 0
    while work < SLICE_WORK:
        task = simd.take_task(counter, 1)
        if task >= n_tasks:
            return False
        kv_head, head, n_heads, token, n_tokens = tile_place(call, task // call.splits)
        q_rows = n_heads * n_tokens
        _start_rows(call, rows, padded_rows, state, state_int, head, n_heads, token, n_tokens)
        first, last, _ = key_range(
            state_int, rows, 0, q_rows, call.first_key, call.last_key - call.first_key
        )  # fmt: skip
        if last <= first and call.resume and not call.finish:
            continue
        steps.pack_queries(call, q_rows, tile, tile_base, head, n_tokens, token, padded_rows)
        base = task * padded_rows * (call.v_stride + 2)
        if call.resume:
            _load_partial(partial, base, call.v_stride, padded_rows, tile, out_base, state, rows)
        else:
            clear(tile, out_base, padded_rows * call.v_stride)
        t = Tile(head, n_heads, token, n_tokens, q_rows, tile_base, out_base)
        n_chunks = max(0, -(-(last - first) // call.keys))
        per_split = -(-n_chunks // call.splits)
        split = task % call.splits
        last = min(last, first + (split + 1) * per_split * call.keys)
        first += split * per_split * call.keys
        for key in range(first, last, call.keys):
            n_keys = min(call.keys, last - key)
            here = steps.open_chunk(call, chunk_address, kv_head, key, n_keys, q_rows)
            steps.add_chunk(
                call, kq, kq_base, here, tile, t, state, state_int, rows, key, n_keys
            )  # fmt: skip
            work += q_rows * n_keys * (call.d_k + call.d_v)

        if call.splits > 1 or not call.finish:
            _save_partial(tile, out_base, call.v_stride, padded_rows, state, rows, partial, base)
        else:
            for r in range(q_rows):
                _write_row(
                    call, tile, out_base + r * call.v_stride, head + r // n_tokens,
                    token + r % n_tokens, state[rows.row_max + r], state[rows.row_sum + r],
                )  # fmt: skip
    return True


_add_chunk = make_add_chunk(Products(_scores, _all_finite, _add_products, _add_products_carefully))


@task_kernel
def attend(job, worker, counter, max_tasks):
    """Tiles on float32; see `work_on_tasks`."""
    steps = Steps(_pack_queries, open_chunk, _add_chunk)
    return work_on_tasks(steps, job, counter, worker)


@task_kernel
def merge(job, worker, counter, max_tasks):
    """Merge the splits of each tile and write its rows; tasks are tiles."""
    call, partial = call_at(simd.read_i64(job)), floats_at(simd.read_i64(job + 40))
    padded_rows = padded_rows_of(call)
    size = padded_rows * (call.v_stride + 2)
    n_tiles = call.n_head_kv * call.head_tiles * call.row_tiles
    while True:
        tile_number = simd.take_task(counter, 1)
        if tile_number >= n_tiles:
            return False
        _, head, n_heads, token, n_tokens = tile_place(call, tile_number)
        first = tile_number * call.splits * size
        maxima = first + padded_rows * call.v_stride
        sums = maxima + padded_rows
        for r in range(n_heads * n_tokens):
            row_max = _MINUS_INF
            for s in range(call.splits):
                row_max = max(row_max, partial[maxima + s * size + r])
            # Split 0's row becomes the merged row.
            row = first + r * call.v_stride
            row_sum = _ZERO
            for s in range(call.splits):
                part_max, part_sum = partial[maxima + s * size + r], partial[sums + s * size + r]
                if part_sum == _ZERO:
                    rescale = _ZERO
                elif part_max == row_max:
                    rescale = _ONE
                else:
                    rescale = np.exp(part_max - row_max)
                row_sum += part_sum * rescale
                for i in range(0, call.v_stride, 16):
                    old, x = simd.splat(_ZERO), simd.splat(_ZERO)
                    if s:
                        old = simd.load_f32x16(partial, row + i)
                    if part_sum != _ZERO:
                        x = simd.load_f32x16(partial, row + s * size + i) * rescale
                    simd.store(partial, row + i, old + x)
            _write_row(
                call, partial, row, head + r // n_tokens, token + r % n_tokens, row_max, row_sum
            )
