"""Rows of float32 activations -> signed bytes with a scale per block of weights.

A row's block of x is stored as q = round(x * 127 / amax), scale amax / 127, as ggml's Q8_0 (blocks
of 32) and Q8_K (blocks of 256) do. Rows are interleaved in groups of `width` columns: dword i of
column c stands at ``4 * (i * width + c)``, so that a tile reads them one after the other.

Not finite: a block of x with a NaN or an infinity gets the scale NaN, so that the whole output row
becomes NaN. A block whose largest value is below 2**-100 counts as zero.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel, task_kernel

from . import lanes
from .layouts import FORM, Job

# Places of fields in a Job; the addresses are its last.
N_FIELDS, FIRST_ADDRESS = len(Job._fields), Job._fields.index("x_rows")
ROW_STRIDE, N_GROUPS, N_TASKS, N_PANELS = map(
    Job._fields.index, ("row_stride", "n_groups", "n_tasks", "n_panels")
)
# What `begin` is to do with x.
QUANTISE, COPY = 1, 2

_SMALLEST, _LARGEST = np.float32(2.0**-100), np.finfo(np.float32).max
_NAN = np.float32(np.nan)
_NO_SIGN = 2**31 - 1


@kernel(inline=True)
def _scale_of(x, n_weights):
    """The scale of a block of x: amax / 127, 0 if all is (nearly) zero, NaN if not finite."""
    largest = simd.splat(0)
    # Without signs, floats are ordered as their bits, and all else comes after them.
    for i in range(n_weights // 16):
        bits = simd.as_i32x16(lanes.load_f32x16(x + i * 64)) & _NO_SIGN
        largest = simd.maximum(bits, largest)
    amax = simd.float_of(simd.max_lanes(largest))
    if amax < _SMALLEST:
        return np.float32(0)
    if amax <= _LARGEST:
        return amax / np.float32(127)
    return _NAN


@kernel(inline=True)
def _put_digits(at, stride, bits, index, total):
    """Sum number `index` as high and low digit, `bits` of them low, at byte `index` of each."""
    here = at + (index >> 2) * stride + (index & 3)
    lanes.put(here, np.uint8(total >> bits))
    lanes.put(here + 4 * stride, np.uint8(total & ((1 << bits) - 1)))


@kernel(inline=True)
def _scale_and_inverse(x, n_weights):
    """The scale of a block, whether it is finite, and what x is multiplied by."""
    scale = _scale_of(x, n_weights)
    inverse = np.float32(0)
    if scale > np.float32(0):
        inverse = np.float32(1) / scale
    return scale, scale == scale, simd.splat(inverse)


@kernel(inline=True)
def _put_step(x, finite, factor, q, stride):
    """Sixteen values of x as bytes, four dwords `stride` bytes apart; as int32."""
    values = simd.splat(0)
    if finite:
        values = simd.to_i32(simd.round_even(lanes.load_f32x16(x) * factor))
    lanes.put_bytes(q, stride, values)
    return values


# What a form ("dwords", "pairs") makes of sums of x is in four functions each:
#
# ``_steps(job)``: steps of 16 values after which sums start anew.
# ``_start(sums, job)``: what a product's sum starts with, of the sums of such steps.
# ``_clear_mins(mins_at, stride, job)`` and ``_put_min(mins_at, stride, index, sums, job)``: room for the sums of x that
# meet mins, and number `index` of them.
# ``_finish(start_at, scales_at, stride, scale, sums, job)``: scales, and what the block's own minimum meets; `sums`: of x
# since the last that was put.


@kernel(inline=True)
def _steps_for_dwords(job):
    return job.segment_steps


@kernel(inline=True)
def _start_for_dwords(sums, job):
    return np.int32(simd.sum_lanes(sums) * -job.shift)


@kernel(inline=True)
def _clear_mins_for_dwords(mins_at, stride, job):
    if job.min_run == 32:  # eight sums in sixteen places
        for i in range(2, 4):
            lanes.put(mins_at + i * stride, np.int32(0))
            lanes.put(mins_at + (4 + i) * stride, np.int32(0))


@kernel(inline=True)
def _put_min_for_dwords(mins_at, stride, index, sums, job):
    total = np.int64(simd.sum_lanes(sums))
    _put_digits(mins_at, stride, 4 + job.min_run // 32, index, total)


@kernel(inline=True)
def _finish_for_dwords(start_at, scales_at, stride, scale, sums, job):
    # Mins that are bytes come by their products; the only one of a block has nothing but the sum of x.
    min_start = np.int32(0)
    if job.n_min_segments > 0 and job.min_run == 0:
        min_start = np.int32(simd.sum_lanes(sums))
    for _ in range(job.n_min_segments):
        lanes.put(start_at, min_start)
        start_at += stride
    for i in range(job.n_segments + job.n_min_segments):
        lanes.put(scales_at + i * stride, scale)


@kernel(inline=True)
def _steps_for_pairs(job):
    return job.run_steps


@kernel(inline=True)
def _start_for_pairs(sums, job):
    """``-shift * sum``, of words for each of both: bytes 0 and 1 of a dword, and 2 and 3."""
    total = np.int64(simd.sum_lanes(sums))
    if job.word_starts == 0:
        return np.int32(total * -job.shift)
    upper = np.int64(simd.sum_lanes(simd.select((simd.iota() & 2) > 0, sums, simd.splat(0))))
    return np.int32(((total - upper) * -job.shift & 0xFFFF) | (upper * -job.shift << 16))


@kernel(inline=True)
def _clear_mins_for_pairs(mins_at, stride, job):
    """All places are written."""


@kernel(inline=True)
def _put_min_for_pairs(mins_at, stride, index, sums, job):
    # Sub-blocks 0 and 2 are a pair, 1 and 3, as mins in a dword's bytes become words.
    pair = index // 4 * 2 + index % 2
    lanes.put(mins_at + pair * stride + (index & 2), np.int16(simd.sum_lanes(sums)))


@kernel(inline=True)
def _finish_for_pairs(start_at, scales_at, stride, scale, sums, job):
    for _ in range(job.n_segments):
        lanes.put(scales_at, scale)
        scales_at += stride
    if job.has_min > 0:
        if job.min_run == 0:  # the block's only minimum meets the sum of all
            scale *= np.float32(simd.sum_lanes(sums))
        lanes.put(scales_at, scale)


_steps, _start, _clear_mins, _put_min, _finish = {
    "dwords": (
        _steps_for_dwords,
        _start_for_dwords,
        _clear_mins_for_dwords,
        _put_min_for_dwords,
        _finish_for_dwords,
    ),
    "pairs": (
        _steps_for_pairs,
        _start_for_pairs,
        _clear_mins_for_pairs,
        _put_min_for_pairs,
        _finish_for_pairs,
    ),
}[FORM]


@kernel(inline=True)
def _quantise_block(x, column, width, job, q, scales, starts):
    """One block of one row of x.

    x : address of the floats; column, width : its place in its group.
    q, scales, starts : addresses of the group's bytes, scales and starting sums for this block.
    """
    stride = 4 * width
    scale, finite, factor = _scale_and_inverse(x, job.block_weights)
    q += 4 * column
    start_at, scales_at = starts + 4 * column, scales + 4 * column
    mins_at, min_steps = q + (job.block_weights // 4) * stride, job.min_run // 16
    _clear_mins(mins_at, stride, job)
    zero = simd.splat(0)
    sums, left = zero, _steps(job)
    min_sums, min_left, min_index = zero, min_steps, np.int64(0)  # min_steps 0: never complete
    for step in range(job.block_weights // 16):
        values = _put_step(x + step * 64, finite, factor, q + step * 4 * stride, stride)
        sums += values
        left -= 1
        if left == 0:
            lanes.put(start_at, _start(sums, job))
            start_at += stride
            sums, left = zero, _steps(job)
        min_sums += values
        min_left -= 1
        if min_left == 0:
            _put_min(mins_at, stride, min_index, min_sums, job)
            min_sums, min_left, min_index = zero, min_steps, min_index + 1
    _finish(start_at, scales_at, stride, scale, min_sums, job)


@kernel(inline=True)
def _quantise_group(job, group):
    n_blocks = job.columns // job.block_weights
    column_bytes = n_blocks * job.x_panel_bytes
    column_scales = n_blocks * job.n_scales * 4
    column_starts = n_blocks * job.n_starts * 4
    slot = lanes.load_int64(job.groups + 16 * group)
    width = lanes.load_int64(job.groups + 16 * group + 8)
    for column in range(width):
        x = lanes.load_int64(job.x_rows + 8 * (slot + column))
        q = job.x_bytes + slot * column_bytes
        scales = job.x_scales + slot * column_scales
        starts = job.x_starts + slot * column_starts
        for _ in range(n_blocks):
            _quantise_block(x, column, width, job, q, scales, starts)
            x += 4 * job.block_weights
            q += job.x_panel_bytes * width
            scales += job.n_scales * 4 * width
            starts += job.n_starts * 4 * width


@task_kernel
def quantise(job_at, worker, counter, max_tasks):
    """Quantise groups of rows until none is left or `max_tasks` are done; whether more are left."""
    job = lanes.load_job(job_at)
    for _ in range(max_tasks):
        group = simd.take_task(counter, 1)
        if group >= job.n_groups:
            return False
        _quantise_group(job, group)
    return True


@kernel(inline=True)
def _copy(source, n, target):
    for i in range(n):
        lanes.put(target + 8 * i, lanes.load_int64(source + 8 * i))


@kernel
def begin(
    scratch, template, tables, x, x_stride, out, out_stride, weights, stride, row_stride, now
):
    """Write the job, at `scratch`, and the tables that the products read.

    All arguments are int64, which cost the least to pass.

    Parameters
    ----------
    scratch, template
        Addresses; the template is `MatmulPlan.job`.
    tables
        Address of what `Tables` holds.
    x, x_stride, out, out_stride
        Address and row stride of x and of the output.
    weights, stride, row_stride
        Address and stride of the matrices, and of their rows.
    now
        `QUANTISE` everything too, or `COPY` the one row of x to `Job.x_bytes` and use it there.
    """
    n_slots, n_groups = lanes.load_int64(tables), lanes.load_int64(tables + 8)
    n_matrices = lanes.load_int64(tables + 16)
    sources = tables + 24
    x_sources = sources + 8 * n_slots
    groups = x_sources + 8 * n_slots
    ends = groups + 16 * n_groups
    experts = ends + 8 * n_matrices
    _copy(template, N_FIELDS, scratch)
    for i in range(FIRST_ADDRESS, N_FIELDS):
        lanes.put(scratch + 8 * i, scratch + lanes.load_int64(template + 8 * i))
    lanes.put(scratch + 8 * ROW_STRIDE, row_stride)
    lanes.put(scratch + 8 * N_GROUPS, n_groups)
    n_panels = lanes.load_int64(template + 8 * N_PANELS)
    lanes.put(scratch + 8 * N_TASKS, n_panels * n_matrices)
    job = lanes.load_job(scratch)
    for i in range(n_slots):
        lanes.put(job.x_rows + 8 * i, x + lanes.load_int64(x_sources + 8 * i) * x_stride)
        lanes.put(job.out_rows + 8 * i, out + lanes.load_int64(sources + 8 * i) * out_stride)
    _copy(groups, 2 * n_groups, job.groups)
    start = np.int64(0)
    for i in range(n_matrices):
        end = lanes.load_int64(ends + 8 * i)
        lanes.put(job.matrices + 24 * i, weights + lanes.load_int64(experts + 8 * i) * stride)
        lanes.put(job.matrices + 24 * i + 8, start)
        lanes.put(job.matrices + 24 * i + 16, end)
        start = end
    if now == COPY:
        row = lanes.load_int64(job.x_rows)
        for k in range(job.columns):
            lanes.put(job.x_bytes + 4 * k, lanes.load_f32(row + 4 * k))
        lanes.put(job.x_rows, job.x_bytes)
    if now == QUANTISE:
        for group in range(n_groups):
            _quantise_group(job, group)
