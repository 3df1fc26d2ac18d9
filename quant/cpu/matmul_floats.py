"""Weights as panels of float32, for `exact=True` and for the float formats.

``fill(rows, job, spare, first, n_k, panel)`` writes weights first .. first + n_k of 16 rows as 16
float32 (one a row) for every k; of a block format exactly one block. `spare` is memory for one
unpacked block of 16 rows.
"""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from quant.cpu import matmul_lanes as lanes
from quant.cpu import matmul_unpack as unpackers
from quant.cpu.matmul_layouts import LANES, STEP


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
def fill_from_block(unpack, rows, job, spare, first, panel):
    """One block of any block format, by way of its bytes."""
    scales = spare + job.panel_bytes * LANES
    mins = spare + (job.block_weights + STEP) * LANES  # the plain (low) ones
    min_scale = scales + (job.n_scales - 1) * 64
    unpackers.to_panel(unpack, rows, first // job.block_weights * job.block_bytes, spare, scales)
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


@kernel(inline=True)
def fill_f32(rows, job, spare, first, n_k, panel):
    whole = n_k // 4 * 4
    for k in range(0, whole, 4):
        q = lanes.columns_4(rows, (first + k) * 4)
        lanes.put(panel + k * 64, q[0])
        lanes.put(panel + k * 64 + 64, q[1])
        lanes.put(panel + k * 64 + 128, q[2])
        lanes.put(panel + k * 64 + 192, q[3])
    for k in range(whole, n_k):
        lanes.put(panel + k * 64, lanes.column_i32(rows, (first + k) * 4))


@kernel(inline=True)
def _fill_16_bits(to_f32, rows, first, n_k, panel):
    """Two weights a dword: low and high half."""
    whole = n_k // 8 * 8
    for k in range(0, whole, 8):
        q = lanes.columns_4(rows, (first + k) * 2)
        to = panel + k * 64
        lanes.put(to, to_f32(lanes.low_halves(q[0])))
        lanes.put(to + 64, to_f32(lanes.low_halves(q[0] >> 16)))
        lanes.put(to + 128, to_f32(lanes.low_halves(q[1])))
        lanes.put(to + 192, to_f32(lanes.low_halves(q[1] >> 16)))
        lanes.put(to + 256, to_f32(lanes.low_halves(q[2])))
        lanes.put(to + 320, to_f32(lanes.low_halves(q[2] >> 16)))
        lanes.put(to + 384, to_f32(lanes.low_halves(q[3])))
        lanes.put(to + 448, to_f32(lanes.low_halves(q[3] >> 16)))
    for k in range(whole, n_k):
        lanes.put(panel + k * 64, to_f32(lanes.column_u16(rows, (first + k) * 2)))


@kernel(inline=True)
def _half_to_f32(v):
    return simd.half_to_f32(v)


@kernel(inline=True)
def _bfloat_to_f32(v):
    return simd.bfloat_to_f32(v)


@kernel(inline=True)
def fill_f16(rows, job, spare, first, n_k, panel):
    _fill_16_bits(_half_to_f32, rows, first, n_k, panel)


@kernel(inline=True)
def fill_bf16(rows, job, spare, first, n_k, panel):
    _fill_16_bits(_bfloat_to_f32, rows, first, n_k, panel)


@kernel(inline=True)
def fill_q8_0(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q8_0, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_q4_0(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q4_0, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_iq4_nl(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_iq4_nl, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_q2_k(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q2_k, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_q3_k(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q3_k, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_q4_k(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q4_k, rows, job, spare, first, panel)


@kernel(inline=True)
def fill_q6_k(rows, job, spare, first, n_k, panel):
    fill_from_block(unpackers.unpack_q6_k, rows, job, spare, first, panel)
