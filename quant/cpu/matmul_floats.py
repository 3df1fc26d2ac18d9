"""Weights as panels of float32, for `exact=True` and for the float formats.

``fill(rows, job, spare, first, n_k, panel, ahead)`` writes weights first .. first + n_k of 16 rows as 16
float32 (one a row) for every k; of a block format exactly one block. `spare` is memory for one
unpacked block of 16 rows; `ahead` is where weights lie that will be needed later.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from quant.cpu import matmul_lanes as lanes
from quant.cpu import matmul_unpack as unpackers
from quant.cpu.matmul_layouts import LANES, STEP

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


@kernel(inline=True)
def fill_from_block(unpack, rows, job, spare, first, panel, ahead):
    """One block of any block format, by way of its bytes."""
    scales = spare + job.panel_bytes * LANES
    mins = spare + (job.block_weights + STEP) * LANES  # the plain (low) ones
    min_scale = scales + (job.n_scales - 1) * 64
    at = first // job.block_weights * job.block_bytes
    unpackers.to_panel(unpack, rows, at, spare, scales, ahead, job.fetch_step)
    for step in range(job.block_weights // STEP):
        scale = lanes.load_at_f32(scales + (step // job.segment_steps) * 64)
        lowest = simd.splat(0.0)
        if job.n_min_segments > 0:
            i = step * STEP // job.min_run
            four = lanes.load_at_i32(mins + (i // 4) * 64)
            integer = simd.to_f32((four >> (8 * (i % 4))) & 255)
            lowest = integer * lanes.load_at_f32(min_scale)
        for i in range(4):
            dword = lanes.load_at_i32(spare + (step * 4 + i) * 64)
            _put_four(panel + (step * 4 + i) * 256, dword, job.shift, scale, lowest)


# ---------------------------------------------------------------- float formats
# ``each(put, state, rows, first, n_k, distance) -> state`` hands over weights first .. first + n_k
# of 16 rows in order, as f32x16 with one row a lane: ``state = put(state, weights)``. What lies
# `distance` bytes after them is fetched meanwhile.


@kernel(inline=True)
def _put_pairs(two, put, state, a, b, c, d):
    """Two weights a dword."""
    low, high = two(a)
    state = put(put(state, low), high)
    low, high = two(b)
    state = put(put(state, low), high)
    low, high = two(c)
    state = put(put(state, low), high)
    low, high = two(d)
    return put(put(state, low), high)


@kernel(inline=True)
def _each_of_16_bits(two, put, state, rows, first, n_k, distance):
    """`two`: the weights in the low and high half of dwords."""
    whole = n_k // 32 * 32
    for k in range(0, whole, 32):
        q = lanes.columns_16(rows, (first + k) * 2, distance)
        state = _put_pairs(two, put, state, q[0], q[1], q[2], q[3])
        state = _put_pairs(two, put, state, q[4], q[5], q[6], q[7])
        state = _put_pairs(two, put, state, q[8], q[9], q[10], q[11])
        state = _put_pairs(two, put, state, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        state = put(state, two(simd.widen(lanes.column_u16(rows, (first + k) * 2)))[0])
    return state


@kernel(inline=True)
def _two_halves(v):
    low, high = lanes.halves(v)
    return simd.half_to_f32(low), simd.half_to_f32(high)


@kernel(inline=True)
def each_f16(put, state, rows, first, n_k, distance):
    return _each_of_16_bits(_two_halves, put, state, rows, first, n_k, distance)


@kernel(inline=True)
def _two_bfloats(v):
    return simd.as_f32x16(v << 16), simd.as_f32x16(v & -65536)


@kernel(inline=True)
def each_bf16(put, state, rows, first, n_k, distance):
    return _each_of_16_bits(_two_bfloats, put, state, rows, first, n_k, distance)


@kernel(inline=True)
def _put_four_floats(put, state, a, b, c, d):
    state = put(put(state, simd.as_f32x16(a)), simd.as_f32x16(b))
    return put(put(state, simd.as_f32x16(c)), simd.as_f32x16(d))


@kernel(inline=True)
def each_f32(put, state, rows, first, n_k, distance):
    whole = n_k // 16 * 16
    for k in range(0, whole, 16):
        q = lanes.columns_16(rows, (first + k) * 4, distance)
        state = _put_four_floats(put, state, q[0], q[1], q[2], q[3])
        state = _put_four_floats(put, state, q[4], q[5], q[6], q[7])
        state = _put_four_floats(put, state, q[8], q[9], q[10], q[11])
        state = _put_four_floats(put, state, q[12], q[13], q[14], q[15])
    for k in range(whole, n_k):
        state = put(state, simd.as_f32x16(lanes.column_i32(rows, (first + k) * 4)))
    return state


@kernel(inline=True)
def _store(panel, weights):
    lanes.put(panel, weights)
    return panel + 64


@kernel(inline=True)
def fill_f32(rows, job, spare, first, n_k, panel, ahead):
    each_f32(_store, panel, rows, first, n_k, _AHEAD)


@kernel(inline=True)
def fill_f16(rows, job, spare, first, n_k, panel, ahead):
    each_f16(_store, panel, rows, first, n_k, _AHEAD)


@kernel(inline=True)
def fill_bf16(rows, job, spare, first, n_k, panel, ahead):
    each_bf16(_store, panel, rows, first, n_k, _AHEAD)


# ---------------------------------------------------------------- one row of x, float formats
# ``read(address)``: 16 weights in a row, and ``read_one(address)`` a single one, as float32.


@kernel(inline=True)
def read_f16(address):
    return simd.half_to_f32(simd.read_u16x16(address))


@kernel(inline=True)
def read_one_f16(address):
    return simd.half_to_f32(simd.read_u16(address))


@kernel(inline=True)
def read_bf16(address):
    return simd.bfloat_to_f32(simd.read_u16x16(address))


@kernel(inline=True)
def read_one_bf16(address):
    return simd.bfloat_to_f32(simd.read_u16(address))


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


# ---------------------------------------------------------------- block formats


@kernel(inline=True)
def fill_q8_0(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q8_0, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_q4_0(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q4_0, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_iq4_nl(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_iq4_nl, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_q2_k(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q2_k, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_q3_k(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q3_k, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_q4_k(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q4_k, rows, job, spare, first, panel, ahead)


@kernel(inline=True)
def fill_q6_k(rows, job, spare, first, n_k, panel, ahead):
    fill_from_block(unpackers.unpack_q6_k, rows, job, spare, first, panel, ahead)
