"""Weights as panels of float32, for `exact=True` and for the float formats.

``fill(rows, job, spare, first, n_k, panel, ahead)`` writes weights first .. first + n_k of 16 rows as 16
float32 (one a row) for every k; of a block format exactly one block. `spare` is memory for one
unpacked block of 16 rows; `ahead` is where weights lie that will be needed later.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes
from . import unpack as unpackers
from .layouts import LANES, STEP

# Float formats: how many bytes on in the same rows is fetched meanwhile.
_AHEAD = 512
# Where rows are read as they lie the CPU fetches on its own, but not beyond a page: one line of each
# chunk is fetched this far on, which finds the page and starts it there.
_PAGES_AHEAD = 8192


@kernel(inline=True)
def _put_four(panel, dword, shift, scale, lowest):
    """Four weights of 16 rows from the bytes of `dword`."""
    lanes.put(panel, simd.multiply_add(_weight(dword, 0, shift), scale, lowest))
    lanes.put(panel + 64, simd.multiply_add(_weight(dword, 8, shift), scale, lowest))
    lanes.put(panel + 128, simd.multiply_add(_weight(dword, 16, shift), scale, lowest))
    lanes.put(panel + 192, simd.multiply_add(_weight(dword, 24, shift), scale, lowest))


@kernel(inline=True)
def _weight(dword, at, shift):
    return simd.to_f32(((dword >> at) & 255) - shift)


def make_fill(unpack):
    """`fill` of a block format: one block, by way of its bytes."""

    @kernel(inline=True)
    def fill(rows, job, spare, first, n_k, panel, ahead):
        scales = spare + job.panel_bytes * LANES
        mins = spare + (job.block_weights + STEP) * LANES  # the plain (low) ones
        min_scale = scales + (job.n_scales - 1) * 64
        at = first // job.block_weights * job.block_bytes
        unpackers.to_panel(unpack, rows, at, spare, scales, ahead, job.fetch_step)
        for step in range(job.block_weights // STEP):
            scale = lanes.load_at_f32(scales + (step // job.segment_steps) * 64)
            lowest = simd.splat(0.0)
            if job.n_min_segments > 0 and job.min_run == 0:
                lowest = lanes.load_at_f32(min_scale)
            elif job.n_min_segments > 0:
                i = step * STEP // job.min_run
                four = lanes.load_at_i32(mins + (i // 4) * 64)
                integer = simd.to_f32((four >> (8 * (i % 4))) & 255)
                lowest = integer * lanes.load_at_f32(min_scale)
            for i in range(4):
                dword = lanes.load_at_i32(spare + (step * 4 + i) * 64)
                _put_four(panel + (step * 4 + i) * 256, dword, job.shift, scale, lowest)

    return fill


# ---------------------------------------------------------------- float formats


@kernel(inline=True)
def _put_pairs(two, panel, a, b, c, d):
    """Two weights a dword."""
    low, high = two(a)
    lanes.put(panel, low)
    lanes.put(panel + 64, high)
    low, high = two(b)
    lanes.put(panel + 128, low)
    lanes.put(panel + 192, high)
    low, high = two(c)
    lanes.put(panel + 256, low)
    lanes.put(panel + 320, high)
    low, high = two(d)
    lanes.put(panel + 384, low)
    lanes.put(panel + 448, high)


@kernel(inline=True)
def _fill_16_bits(two, rows, first, n_k, panel):
    """`two`: the weights in the low and high half of dwords."""
    whole = n_k // 32 * 32
    for k in range(0, whole, 32):
        q = lanes.columns_16(rows, (first + k) * 2, _AHEAD)
        _put_pairs(two, panel + 64 * k, q[0], q[1], q[2], q[3])
        _put_pairs(two, panel + 64 * k + 512, q[4], q[5], q[6], q[7])
        _put_pairs(two, panel + 64 * k + 1024, q[8], q[9], q[10], q[11])
        _put_pairs(two, panel + 64 * k + 1536, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        weights, _ = two(simd.widen(lanes.column_u16(rows, (first + k) * 2)))
        lanes.put(panel + 64 * k, weights)


@kernel(inline=True)
def _two_halves(v):
    low, high = lanes.halves(v)
    return simd.half_to_f32(low), simd.half_to_f32(high)


@kernel(inline=True)
def fill_f16(rows, job, spare, first, n_k, panel, ahead):
    _fill_16_bits(_two_halves, rows, first, n_k, panel)


@kernel(inline=True)
def _two_bfloats(v):
    return simd.as_f32x16(v << 16), simd.as_f32x16(v & -65536)


@kernel(inline=True)
def fill_bf16(rows, job, spare, first, n_k, panel, ahead):
    _fill_16_bits(_two_bfloats, rows, first, n_k, panel)


@kernel(inline=True)
def _put_four_floats(panel, a, b, c, d):
    lanes.put(panel, simd.as_f32x16(a))
    lanes.put(panel + 64, simd.as_f32x16(b))
    lanes.put(panel + 128, simd.as_f32x16(c))
    lanes.put(panel + 192, simd.as_f32x16(d))


@kernel(inline=True)
def fill_f32(rows, job, spare, first, n_k, panel, ahead):
    whole = n_k // 16 * 16
    for k in range(0, whole, 16):
        q = lanes.columns_16(rows, (first + k) * 4, _AHEAD)
        _put_four_floats(panel + 64 * k, q[0], q[1], q[2], q[3])
        _put_four_floats(panel + 64 * k + 256, q[4], q[5], q[6], q[7])
        _put_four_floats(panel + 64 * k + 512, q[8], q[9], q[10], q[11])
        _put_four_floats(panel + 64 * k + 768, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        lanes.put(panel + 64 * k, simd.as_f32x16(lanes.column_i32(rows, (first + k) * 4)))


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
            a = simd.multiply_add(read(weights), lanes.load_at_f32(x), a)
            b = simd.multiply_add(read(weights + step), lanes.load_at_f32(x + 64), b)
            c = simd.multiply_add(read(weights + 2 * step), lanes.load_at_f32(x + 128), c)
            d = simd.multiply_add(read(weights + 3 * step), lanes.load_at_f32(x + 192), d)
            weights += 4 * step
            x += 256
        for _ in range(n_k % 64 // 16):
            a = simd.multiply_add(read(weights), lanes.load_at_f32(x), a)
            weights += step
            x += 64
        for lane in range(n_k % 16):
            w = simd.splat(read_one(weights))
            more = simd.multiply_add(w, lanes.splat_f32(x), b)
            b = simd.select(simd.iota() == lane, more, b)
            weights += weight_bytes
            x += 4
        total += simd.sum_lanes((a + b) + (c + d))
    return total
