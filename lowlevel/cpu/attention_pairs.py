"""Attention with ``precision="bf16"``: both products in bfloat16, all else as in attention_kernel.

Queries, K, V and the weights of the softmax are rounded to bfloat16 and packed in pairs: queries and K
along d_k, weights and V along keys. Pairs overwrite the float32 rows they were made of, so the
scratch is the same:

=========  ====================================================================================
queries    line i of a panel: values 2i and 2i + 1 of its query rows
K          each row in the first half of its place
V          rows 2j and 2j + 1 in the place of the first
weights    lines 2j and 2j + 1 in the place of the first
=========  ====================================================================================

Scores, maxima, sums and the output stay float32.
"""

import numpy as np

from . import simd
from .attention_kernel import (
    ROWS_READING_IN_PLACE,
    Products,
    Steps,
    clear,
    make_add_chunk,
    make_value_steps,
    open_chunk,
    work_on_tasks,
)
from .bfloat import bits_of, round_pairs, round_row
from .gemm_tile import TILE_COLUMNS, TILE_ROWS, TILE_VECTORS, make_gemm_tile
from .jit import kernel, task_kernel

_gemm = make_gemm_tile(TILE_ROWS, TILE_VECTORS, pairs=True)

_ZERO = np.float32(0)
_HIGH_HALF = 0xFFFF0000


@kernel(inline=True)
def _rounded_bits(x):
    """The bits of one bfloat16, ties to even; a NaN stays one."""
    bits = bits_of(x)
    if x != x:
        return (bits >> 16) | 0x40
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@kernel(inline=True)
def _pack_queries(call, q_rows, tile, base, head, n_tokens, token, padded_rows):
    clear(tile, base, padded_rows * call.q_depth)
    address = simd.address(tile)
    for r in range(q_rows):
        source = (head + r // n_tokens) * call.q_head + (token + r % n_tokens) * call.q_token
        at = base + (r // call.panel) * (call.q_depth * call.panel) + r % call.panel
        for i in range(0, call.d_k, 2):
            pair = _rounded_bits(simd.read_f32(call.q, source + i))
            if i + 1 < call.d_k:
                pair |= _rounded_bits(simd.read_f32(call.q, source + i + 1)) << 16
            simd.write_at(address + 4 * (at + (i // 2) * call.panel), np.uint32(pair))


@kernel(inline=True)
def _first(address, n):
    """The first `n` (more than 16: all) of 16 floats, then zeros."""
    return simd.select(simd.iota() < n, simd.read_f32x16(address, 0), simd.splat(_ZERO))


@kernel(inline=True)
def _open_chunk(call, scratch, kv_head, key, n_keys, q_rows):
    here = open_chunk(call, scratch, kv_head, key, n_keys, ROWS_READING_IN_PLACE + 1)
    for j in range(n_keys):
        row = here.k + 4 * j * here.k_step
        for i in range(0, call.d_k, 32):
            low, high = (
                _first(row + 4 * i, call.d_k - i),
                _first(row + 4 * i + 64, call.d_k - i - 16),
            )
            simd.write_at(row + 2 * i, round_row(low, high))
    step = 4 * here.v_step
    for j in range(0, n_keys, 2):
        row = here.v + j * step
        second = row + step if j + 1 < n_keys else row  # unused then
        for i in range(0, 4 * call.d_v, 64):
            pairs = round_pairs(simd.read_f32x16(row + i, 0), simd.read_f32x16(second + i, 0))
            simd.write_at(row + i, pairs)
    return here


@kernel(inline=True)
def _scores(call, queries, chunk, out, n_keys):
    panel, depth, k_step = call.panel, (call.d_k + 1) // 2, chunk.k_step
    for j in range(0, n_keys, TILE_ROWS):
        k, line = chunk.k + 4 * j * k_step, out + 4 * j * panel
        for column in range(0, 4 * panel, 4 * TILE_COLUMNS):
            _gemm(k, k_step, 1, queries + column, panel, line + column, panel, depth, False)


@kernel(inline=True)
def _value_pair(chunk, j, i):
    """Rows of V 2 * (j // 2) and the next one, from column i on, as i32x16."""
    row = chunk.v + 4 * (j - j % 2) * chunk.v_step
    return simd.as_i32x16(simd.read_f32x16(row, i))


@kernel(inline=True)
def _value(chunk, j, i):
    """Row j of V from column i on, as rounded."""
    pair = _value_pair(chunk, j, i)
    if j % 2:
        return simd.as_floats(pair & _HIGH_HALF)
    return simd.as_floats(pair << 16)


@kernel(inline=True)
def _add_products(call, weights, chunk, output, n_rows, n_keys):
    panel, stride, step = call.panel, call.v_stride, chunk.v_step
    for j in range(0, n_keys - 1, 2):
        line = weights + 4 * j * panel
        for c in range(0, 4 * panel, 64):
            pairs = round_pairs(
                simd.read_f32x16(line + c, 0), simd.read_f32x16(line + 4 * panel + c, 0)
            )
            simd.write_at(line + c, pairs)
    for column in range(0, 4 * call.d_v, 4 * TILE_COLUMNS):
        v, o = chunk.v + column, output + column
        for r in range(0, n_rows, TILE_ROWS):
            _gemm(
                weights + 4 * r, 1, 2 * panel, v, 2 * step, o + 4 * r * stride, stride,
                n_keys // 2, True,
            )  # fmt: skip
    if n_keys % 2:  # its partner in V may be left out, and not a number
        for r in range(n_rows):
            p = simd.read_f32(weights, (n_keys - 1) * panel + r)
            for i in range(0, call.d_v, 16):
                x = simd.read_f32x16(output, r * stride + i)
                x = simd.fma(_value(chunk, n_keys - 1, i), simd.splat(p), x)
                simd.write_f32x16(output, r * stride + i, x)


_all_finite, _add_products_carefully = make_value_steps(_value)
_add_chunk = make_add_chunk(Products(_scores, _all_finite, _add_products, _add_products_carefully))


@task_kernel
def attend_pairs(job, worker, counter, max_tasks):
    """See attention_kernel.attend."""
    steps = Steps(_pack_queries, _open_chunk, _add_chunk)
    return work_on_tasks(steps, job, counter, worker)
