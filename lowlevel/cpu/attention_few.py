"""Attention for few query rows of a K/V head, as in decoding: the walk of attention_kernel.py without panels.

K and V are read about once each, and that is what such calls cost: rows of 32-bit and 16-bit floats are
read where they lie and widened in registers (other types come through a fill, a chunk at a time).
Query rows and scores are plain rows: keys lie side by side in the lanes, so that the softmax of one
row wastes none::

    scores[r, j]  = K[j] . queries[r]             along d_k
    weights       = online softmax along a row, in place
    output[r]    *= rescale, += weights[r] . V    gemm_tile

There is a kernel for each type of K and V that is read in place.
"""

from typing import NamedTuple

import numpy as np

from . import float_reads, simd, softmax
from .attention_call import key_range, mask_row
from .attention_kernel import (
    Steps,
    clear,
    make_value_steps,
    prefetch_key,
    rescale,
    work_on_tasks,
)
from .gemm_tile import TILE_COLUMNS, make_gemm_tile
from .jit import kernel, task_kernel
from .layout import LINE
from .steps_kernel import weigh

# Rows that share a widened vector of K or V.
_GROUP = 4
# Columns of a register tile. One row has as many sums as the latency of an fma needs.
_ONE_COLUMNS, _GROUP_COLUMNS = 4 * TILE_COLUMNS, 2 * TILE_COLUMNS

_ZERO, _ONE = np.float32(0), np.float32(1)
_MINUS_INF = np.float32(-np.inf)


class Chunk(NamedTuple):
    """Where a chunk's rows of K and V lie, and how far apart; and where K and V go on after it
    (as the caller gave them). All in bytes."""

    k: int
    k_step: int
    v: int
    v_step: int
    next_k: int
    next_v: int


# ---------------------------------------------------------------- scratch and operands


@kernel(inline=True)
def _line(n_keys):
    """From one row of scores to the next. (Eight rows of it are no more than a panel of 16.)"""
    return -(-n_keys // LINE) * LINE


@kernel(inline=True)
def _pack_queries(call, q_rows, tile, base, head, n_tokens, token, padded_rows):
    """Queries into scratch as rows, filled up with zeros, and rows of zeros after them."""
    clear(tile, base, padded_rows * call.q_depth)
    for r in range(q_rows):
        source = (head + r // n_tokens) * call.q_head + (token + r % n_tokens) * call.q_token
        at = base + r * call.q_depth
        for i in range(call.d_k):
            tile[at + i] = simd.read_f32(call.q, source + i)


@kernel(inline=True)
def _skip_keys(chunk, n):
    k, v = chunk.k + n * chunk.k_step, chunk.v + n * chunk.v_step
    return Chunk(k, chunk.k_step, v, chunk.v_step, chunk.next_k, chunk.next_v)


@kernel(inline=True)
def _in_place(call, kv_head, key, n_keys, item_bytes):
    k = call.k + kv_head * call.k_head + key * call.k_key
    v = call.v + kv_head * call.v_head + key * call.v_key
    next_k, next_v = k + n_keys * call.k_key, v + n_keys * call.v_key
    if call.v_column >= 0:
        return Chunk(k, call.k_key, k + item_bytes * call.v_column, call.k_key, next_k, next_v)
    return Chunk(k, call.k_key, v, call.v_key, next_k, next_v)


@kernel(inline=True)
def _open_float32(call, scratch, kv_head, key, n_keys, q_rows):
    """What is not float32, or no whole vectors, is decoded into scratch."""
    here = _in_place(call, kv_head, key, n_keys, 4)
    k, k_step, v, v_step = here.k, here.k_step, here.v, here.v_step
    if not call.k_direct:
        # Columns past d_k meet zeros of the queries, but must be numbers.
        for j in range(n_keys):
            simd.write_f32x16(scratch, j * call.k_stride + call.q_depth - 16, simd.splat(_ZERO))
        simd.call_fill(call.k_fill, k, call.k_key, n_keys, call.d_k, scratch, call.k_stride)
        k, k_step = scratch, 4 * call.k_stride
        if call.v_column >= 0:
            v, v_step = k + 4 * call.v_column, k_step
    if call.v_column < 0 and not call.v_direct:
        scratch += 4 * call.keys * call.k_stride
        simd.call_fill(call.v_fill, v, call.v_key, n_keys, call.d_v, scratch, call.v_stride)
        v, v_step = scratch, 4 * call.v_stride
    return Chunk(k, k_step, v, v_step, here.next_k, here.next_v)


@kernel(inline=True)
def _open_16_bits(call, scratch, kv_head, key, n_keys, q_rows):
    return _in_place(call, kv_head, key, n_keys, 2)


# ---------------------------------------------------------------- softmax


@kernel(inline=True)
def _finish_scores(call, kq, at, n_keys, key, low, high, position, slope, mask):
    """Scores of a row of `n_keys` keys from `key` on, in place; -inf outside low .. high. The largest."""
    row_max, out = simd.splat(_MINUS_INF), simd.splat(_MINUS_INF)
    for j in range(0, n_keys, 16):
        s = softmax.score(simd.load_f32x16(kq, at + j), call.scale, call.softcap)
        keys = simd.iota() + (key + j)
        if slope != _ZERO:
            s = s - simd.absolute(simd.to_f32(keys - position)) * slope
        if mask and call.mask_key == 1 and j + 16 <= n_keys:
            m = simd.read_f32x16(mask, j)
            s = simd.select(m == _MINUS_INF, out, s + m)
        elif mask:
            simd.store(kq, at + j, s)
            for i in range(j, min(j + 16, n_keys)):
                m = simd.read_f32(mask, i * call.mask_key)
                kq[at + i] = m if m == _MINUS_INF else kq[at + i] + m
            s = simd.load_f32x16(kq, at + j)
        s = simd.select(keys < low, out, s)
        s = simd.select(keys < high, s, out)
        simd.store(kq, at + j, s)
        row_max = simd.maximum(s, row_max)  # a NaN in s is not the maximum
    return simd.max_lanes(row_max)


@kernel(inline=True)
def _update_row(call, kq, at, n_keys, key, state, state_int, rows, r, mask):
    """One step of a row's online softmax: scores to weights, its maximum and sum; True if its output
    must be multiplied by its factor."""
    low, high = state_int[rows.low + r], min(state_int[rows.high + r], key + n_keys)
    largest = _finish_scores(
        call, kq, at, n_keys, key, low, high, state_int[rows.position + r], state[rows.slope + r], mask
    )  # fmt: skip
    old = state[rows.row_max + r]
    row_max = max(largest, old)
    reference = _ZERO if row_max == _MINUS_INF else row_max
    added = weigh(kq, at, 0, _line(n_keys), reference)
    rescale = _ONE
    if row_max > old:
        rescale = np.exp(old - reference)
    state[rows.row_max + r], state[rows.rescale + r] = row_max, rescale
    state[rows.row_sum + r] = state[rows.row_sum + r] * rescale + added
    return rescale != _ONE


# ---------------------------------------------------------------- one kernel for each format


def _make_add_rows(n_rows, columns, dtype_name, item_bytes):
    """``add_rows(call, weights, line, chunk, output, n_keys)``: `n_rows` output rows += weights . V chunk, in
    register tiles of so many columns and, for the last ones, of `TILE_COLUMNS`; addresses."""
    wide = make_gemm_tile(n_rows, columns // 16, b_type=dtype_name)
    narrow = make_gemm_tile(n_rows, TILE_COLUMNS // 16, b_type=dtype_name)

    @kernel(inline=True)
    def add_rows(call, weights, line, chunk, output, n_keys):
        stride, step = call.v_stride, chunk.v_step // item_bytes
        whole = call.d_v // columns * columns
        for column in range(0, whole, columns):
            v, o = chunk.v + item_bytes * column, output + 4 * column
            wide(weights, line, 1, v, step, o, stride, n_keys, True)
        for column in range(whole, call.d_v, TILE_COLUMNS):
            v, o = chunk.v + item_bytes * column, output + 4 * column
            narrow(weights, line, 1, v, step, o, stride, n_keys, True)

    return add_rows


def _make_add_chunk(dtype_name, item_bytes, read):
    """`Steps.add_chunk` for K and V of a type; ``read(address)``: 16 of them, as float32."""
    add_one = _make_add_rows(1, _ONE_COLUMNS, dtype_name, item_bytes)
    add_group = _make_add_rows(_GROUP, _GROUP_COLUMNS, dtype_name, item_bytes)

    @kernel(inline=True)
    def scores_of_one(call, tile, queries, chunk, kq, at, n_keys):
        """A single stream without gaps, which the hardware fetches ahead best by itself: faster than
        being asked line by line, or than four keys side by side."""
        for j in range(n_keys):
            if item_bytes == 4 and not call.k_direct:
                prefetch_key(call, chunk, j)
            k, a = chunk.k + j * chunk.k_step, simd.splat(_ZERO)
            for i in range(0, call.q_depth, 16):
                a = simd.fma(read(k + item_bytes * i), simd.load_f32x16(tile, queries + i), a)
            kq[at + j] = simd.sum_lanes(a)

    @kernel(inline=True)
    def scores_of_group(call, tile, queries, chunk, kq, at, line, n_keys):
        """Four rows (those that are not there are zeros) and two keys at a time, the last one twice if
        it is alone."""
        depth = call.q_depth
        for j in range(0, n_keys, 2):
            other = min(j + 1, n_keys - 1)
            prefetch_key(call, chunk, j)
            prefetch_key(call, chunk, other)
            k, k_other = chunk.k + j * chunk.k_step, chunk.k + other * chunk.k_step
            a = simd.splat(_ZERO)
            b, c, d, e, f, g, h = a, a, a, a, a, a, a
            for i in range(0, depth, 16):
                x, y, q = read(k + item_bytes * i), read(k_other + item_bytes * i), queries + i
                first, second = simd.load_f32x16(tile, q), simd.load_f32x16(tile, q + depth)
                a, b = simd.fma(x, first, a), simd.fma(x, second, b)
                e, f = simd.fma(y, first, e), simd.fma(y, second, f)
                third = simd.load_f32x16(tile, q + 2 * depth)
                fourth = simd.load_f32x16(tile, q + 3 * depth)
                c, d = simd.fma(x, third, c), simd.fma(x, fourth, d)
                g, h = simd.fma(y, third, g), simd.fma(y, fourth, h)
            here = at + j
            kq[here], kq[here + line] = simd.sum_lanes(a), simd.sum_lanes(b)
            kq[here + 2 * line], kq[here + 3 * line] = simd.sum_lanes(c), simd.sum_lanes(d)
            kq[here + 1], kq[here + line + 1] = simd.sum_lanes(e), simd.sum_lanes(f)
            kq[here + 2 * line + 1], kq[here + 3 * line + 1] = simd.sum_lanes(g), simd.sum_lanes(h)

    @kernel(inline=True)
    def add_products(call, weights, line, chunk, output, n_rows, n_keys):
        """Output rows += weights . V chunk; addresses."""
        if n_rows == 1:
            add_one(call, weights, line, chunk, output, n_keys)
            return
        for r in range(0, n_rows, _GROUP):
            rows = output + 4 * r * call.v_stride
            add_group(call, weights + 4 * r * line, line, chunk, rows, n_keys)

    @kernel(inline=True)
    def value(chunk, j, i):
        return read(chunk.v + j * chunk.v_step + item_bytes * i)

    all_finite, add_products_carefully = make_value_steps(value)

    @kernel(inline=True)
    def add_chunk(call, kq, kq_base, chunk, tile, t, state, state_int, rows, key, n_keys):
        """See `attention_kernel.make_add_chunk`."""
        low, high, all_seen = key_range(state_int, rows, 0, t.q_rows, key, n_keys)
        if high <= low:
            return
        here, n = _skip_keys(chunk, low - key), high - low
        line = _line(n)
        if t.q_rows == 1:
            scores_of_one(call, tile, t.queries, here, kq, kq_base, n)
        else:
            for r in range(0, t.q_rows, _GROUP):
                scores_of_group(
                    call, tile, t.queries + r * call.q_depth, here, kq, kq_base + r * line, line, n
                )  # fmt: skip
        for r in range(t.q_rows):
            mask = mask_row(call, t, r, low) if call.mask else 0
            at = kq_base + r * line
            if _update_row(call, kq, at, n, low, state, state_int, rows, r, mask):
                rescale(
                    tile, t.output + r * call.v_stride, call.v_stride, 1, state, rows.rescale + r
                )
        if (call.mask or not all_seen) and not all_finite(call, here, n):
            add_products_carefully(call, kq, kq_base, (line, 1), here, tile, t.output, t.q_rows, n)
        else:
            add_products(
                call, simd.address(kq) + 4 * kq_base, line, here,
                simd.address(tile) + 4 * t.output, t.q_rows, n,
            )  # fmt: skip

    return add_chunk


def _make_attend(dtype_name, item_bytes, read, open_chunk):
    add_chunk = _make_add_chunk(dtype_name, item_bytes, read)

    @task_kernel
    def attend_few(job, worker, counter, max_tasks):
        """See attention_kernel.attend."""
        steps = Steps(_pack_queries, open_chunk, add_chunk)
        return work_on_tasks(steps, job, counter, worker)

    return attend_few


# By the type of K and V that is read in place.
ATTEND_FEW = {
    "float32": _make_attend("float32", 4, float_reads.read_f32, _open_float32),
    "float16": _make_attend("float16", 2, float_reads.read_f16, _open_16_bits),
    "bfloat16": _make_attend("bfloat16", 2, float_reads.read_bf16, _open_16_bits),
}
