"""Weights as panels of float32, for `exact=True` and for the float formats.

``fill(rows, job, spare, first, n_k, panel, ahead)`` writes weights first .. first + n_k of a vector of rows, a
float32 each, for every k; of a block format exactly one block. `spare` is memory for one
unpacked block of them; `ahead` is where weights lie that will be needed later.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes
from .layouts import LANES, STEP, VECTOR

# Float formats: how many bytes on in the same rows is fetched meanwhile.
_AHEAD = 512
# Where rows are read as they lie the CPU fetches on its own, but not beyond a page: one line of each
# chunk is fetched this far on, which finds the page and starts it there.
_PAGES_AHEAD = 8192


def make_fill(unpack: Any, to_panel: Any, as_floats: tuple[Any, Any]) -> Any:
    """`fill` of a block format: one block, by way of its bytes; see `as_floats_of` of a form."""
    weight, scale_and_lowest = as_floats

    @kernel(inline=True)
    def put_four(panel, dword, shift, scale, lowest):
        """Four weights of each row from the bytes of `dword`."""
        lanes.put(panel, simd.multiply_add(weight(dword, 0, shift), scale, lowest))
        lanes.put(panel + VECTOR, simd.multiply_add(weight(dword, 1, shift), scale, lowest))
        lanes.put(panel + 2 * VECTOR, simd.multiply_add(weight(dword, 2, shift), scale, lowest))
        lanes.put(panel + 3 * VECTOR, simd.multiply_add(weight(dword, 3, shift), scale, lowest))

    @kernel(inline=True)
    def fill(rows, job, spare, first, n_k, panel, ahead):
        scales = spare + job.panel_bytes * LANES
        at = first // job.block_weights * job.block_bytes
        to_panel(unpack, rows, at, spare, scales, ahead, job.fetch_step)
        for step in range(job.block_weights // STEP):
            scale, lowest = scale_and_lowest(job, spare, scales, step)
            for i in range(4):
                dword = lanes.load_ints(spare + (step * 4 + i) * VECTOR)
                put_four(panel + (step * 4 + i) * 4 * VECTOR, dword, job.shift, scale, lowest)

    return fill


# ---------------------------------------------------------------- float formats


@kernel(inline=True)
def _put_pairs(two, panel, a, b, c, d):
    """Two weights a dword."""
    low, high = two(a)
    lanes.put(panel, low)
    lanes.put(panel + VECTOR, high)
    low, high = two(b)
    lanes.put(panel + 2 * VECTOR, low)
    lanes.put(panel + 3 * VECTOR, high)
    low, high = two(c)
    lanes.put(panel + 4 * VECTOR, low)
    lanes.put(panel + 5 * VECTOR, high)
    low, high = two(d)
    lanes.put(panel + 6 * VECTOR, low)
    lanes.put(panel + 7 * VECTOR, high)


@kernel(inline=True)
def _fill_16_bits(two, rows, first, n_k, panel):
    """`two`: the weights in the low and high half of dwords."""
    whole = n_k // 32 * 32
    for k in range(0, whole, 32):
        q = lanes.columns_16(rows, (first + k) * 2, _AHEAD)
        _put_pairs(two, panel + VECTOR * k, q[0], q[1], q[2], q[3])
        _put_pairs(two, panel + VECTOR * k + 8 * VECTOR, q[4], q[5], q[6], q[7])
        _put_pairs(two, panel + VECTOR * k + 16 * VECTOR, q[8], q[9], q[10], q[11])
        _put_pairs(two, panel + VECTOR * k + 24 * VECTOR, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        weights, _ = two(simd.widen(lanes.column_u16(rows, (first + k) * 2)))
        lanes.put(panel + VECTOR * k, weights)


@kernel(inline=True)
def _two_halves(v):
    low, high = lanes.halves(v)
    return simd.half_to_f32(low), simd.half_to_f32(high)


@kernel(inline=True)
def fill_f16(rows, job, spare, first, n_k, panel, ahead):
    _fill_16_bits(_two_halves, rows, first, n_k, panel)


@kernel(inline=True)
def _two_bfloats(v):
    return simd.as_floats(v << 16), simd.as_floats(v & -65536)


@kernel(inline=True)
def fill_bf16(rows, job, spare, first, n_k, panel, ahead):
    _fill_16_bits(_two_bfloats, rows, first, n_k, panel)


@kernel(inline=True)
def _put_four_floats(panel, a, b, c, d):
    lanes.put(panel, simd.as_floats(a))
    lanes.put(panel + VECTOR, simd.as_floats(b))
    lanes.put(panel + 2 * VECTOR, simd.as_floats(c))
    lanes.put(panel + 3 * VECTOR, simd.as_floats(d))


@kernel(inline=True)
def fill_f32(rows, job, spare, first, n_k, panel, ahead):
    whole = n_k // 16 * 16
    for k in range(0, whole, 16):
        q = lanes.columns_16(rows, (first + k) * 4, _AHEAD)
        _put_four_floats(panel + VECTOR * k, q[0], q[1], q[2], q[3])
        _put_four_floats(panel + VECTOR * k + 4 * VECTOR, q[4], q[5], q[6], q[7])
        _put_four_floats(panel + VECTOR * k + 8 * VECTOR, q[8], q[9], q[10], q[11])
        _put_four_floats(panel + VECTOR * k + 12 * VECTOR, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        lanes.put(panel + VECTOR * k, simd.as_floats(lanes.column_i32(rows, (first + k) * 4)))


# ---------------------------------------------------------------- one row of x, float formats
# ``read(address)``: 16 weights in a row, and ``read_one(address)`` a single one: see float_reads.py.


@kernel(inline=True)
def row_product(read, read_one, weight_bytes, weights, x, job):
    """The product of a row of weights with the floats at `x`.

    In chunks, whose sums are added one after the other: that keeps the error small. Four sums of 16 lanes in
    a chunk, so that the CPU need not wait for one addition to begin the next.
    """
    total, step = np.float32(0), 16 * weight_bytes
    for first in range(0, job.columns, job.chunk):
        n_k = min(job.chunk, job.columns - first)
        a = b = c = d = simd.splat(0.0)
        simd.prefetch(weights + _PAGES_AHEAD)
        for _ in range(n_k // 64):
            a = simd.multiply_add(read(weights), lanes.load_f32x16(x), a)
            b = simd.multiply_add(read(weights + step), lanes.load_f32x16(x + 64), b)
            c = simd.multiply_add(read(weights + 2 * step), lanes.load_f32x16(x + 128), c)
            d = simd.multiply_add(read(weights + 3 * step), lanes.load_f32x16(x + 192), d)
            weights += 4 * step
            x += 256
        for _ in range(n_k % 64 // 16):
            a = simd.multiply_add(read(weights), lanes.load_f32x16(x), a)
            weights += step
            x += 64
        for lane in range(n_k % 16):
            w = simd.splat(read_one(weights))
            more = simd.multiply_add(w, simd.splat(lanes.load_f32(x)), b)
            b = simd.select(simd.iota() == lane, more, b)
            weights += weight_bytes
            x += 4
        total += simd.sum_lanes((a + b) + (c + d))
    return total
