"""The loops of `quant.matmul`: a panel of weight rows against all groups of columns.

A task is `ROWS` rows of one matrix. Its weights are unpacked chunk by chunk of k into a panel that
stays in the first cache, and each group of columns (a few rows of x) passes over it with
all sums in registers. Between chunks the sums rest in `out`. The order of all float operations of
an output value is that of its segments along k, whatever the batch, the group or the threads: the
same row of x gives the same bits in any company.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import floats, lanes
from .layouts import LANES, ROWS, VECTOR, VECTORS, WIDTHS
from .places import panel_sizes

# Numba sees these as the literals that tile types need.
_W1, _W2, _W3, _W4 = WIDTHS
# With fewer tasks a worker does not reserve its next one ahead: another may be idle.
_MANY_TASKS = 32


# The loops over tasks run until none is left or `max_tasks` are done, and return whether more may
# be left. They are not one function with a callback: Numba optimises anew at every level of calls.


@kernel(inline=True)
def _task_rows(job, task):
    """Address of the task's matrix entry, its first row, its number of rows, and their address."""
    matrix = job.matrices + 24 * (task // job.n_panels)
    row = (task % job.n_panels) * ROWS
    n_rows = min(job.n_rows - row, ROWS)
    return matrix, row, n_rows, lanes.load_int64(matrix) + row * job.row_stride


@kernel(inline=True)
def _begin(job, task, left, counter, rows):
    """What a task is, with the addresses of its weight rows put at `rows`, and what comes next.

    Of many tasks the next one is taken early, to fetch its weights while this one computes.

    Returns
    -------
    matrix, row, n_rows
    next_task
        -1 if not taken yet.
    ahead
        Where the weights of the next task lie; this one's if there is none.
    """
    matrix, row, n_rows, weights = _task_rows(job, task)
    for i in range(ROWS):
        lanes.put(rows + 8 * i, weights + min(i, n_rows - 1) * job.row_stride)
    next_task, ahead = np.int64(-1), weights
    if (task + 1) % job.stretch != 0 or (left > 0 and job.n_tasks >= _MANY_TASKS):
        next_task = _task_after(job, task, counter)
        if next_task < job.n_tasks:
            _, _, _, ahead = _task_rows(job, next_task)
    return matrix, row, n_rows, next_task, ahead


@kernel(inline=True)
def _first_task(job, counter):
    """The first of a stretch of tasks that is left, or one that there is not.

    A worker takes stretches, whose weights follow one another: memory is slower where workers read by turns.
    """
    return min(simd.take_task(counter, 1), job.n_tasks) * job.stretch


@kernel(inline=True)
def _task_after(job, task, counter):
    """The next of its stretch, or the first of another one."""
    if (task + 1) % job.stretch != 0:
        return task + 1
    return _first_task(job, counter)


@kernel(inline=True)
def _next(job, next_task, left, counter):
    """The task that `_begin` has named; where it has named none, a stretch has ended.

    The number of the task itself would be one register too many through the loops between: a quarter of the time with Q4_K.
    """
    if next_task < 0 and left > 0:
        return _first_task(job, counter)
    return next_task


@kernel(inline=True)
def panels(unpack_piece, pass_group, job_at, worker, counter, max_tasks):
    """By way of panels: chunk after chunk is unpacked, and all groups of columns pass over it."""
    job = lanes.load_job(job_at)
    rows = job.workers + worker * job.worker_bytes
    memory = rows + 8 * ROWS
    task = _first_task(job, counter)
    for left in range(max_tasks - 1, -1, -1):
        if task >= job.n_tasks:
            return False
        matrix, row, n_rows, task, ahead = _begin(job, task, left, counter, rows)
        for first in range(0, job.columns, job.chunk):
            n_k = min(job.chunk, job.columns - first)
            for k in range(0, n_k, job.piece):
                for v in range(job.vectors):
                    some, n = rows + 8 * LANES * v, min(job.piece, n_k - k)
                    unpack_piece(some, job, memory, v, first + k, k, n, ahead)
                    ahead += LANES * job.piece_bytes
            for group in range(lanes.load_int64(matrix + 8), lanes.load_int64(matrix + 16)):
                slot = lanes.load_int64(job.groups + 16 * group)
                width = lanes.load_int64(job.groups + 16 * group + 8)
                place = (slot, first, n_k, memory, row, n_rows)
                if width == _W4:
                    pass_group(lanes.zero_tile(_W4), _W4, job, place)
                elif width == _W3:
                    pass_group(lanes.zero_tile(_W3), _W3, job, place)
                elif width == _W2:
                    pass_group(lanes.zero_tile(_W2), _W2, job, place)
                else:
                    pass_group(lanes.zero_tile(_W1), _W1, job, place)
        task = _next(job, task, left, counter)
    return True


@kernel(inline=True)
def single_columns(to_product, unpack, job_at, worker, counter, max_tasks):
    """Where each matrix meets one row of x: unpacked vectors go straight into the products."""
    job = lanes.load_job(job_at)
    rows = job.workers + worker * job.worker_bytes
    n_blocks = job.columns // job.block_weights
    task = _first_task(job, counter)
    for left in range(max_tasks - 1, -1, -1):
        if task >= job.n_tasks:
            return False
        matrix, row, n_rows, task, ahead = _begin(job, task, left, counter, rows)
        slot = lanes.load_int64(job.groups + 16 * lanes.load_int64(matrix + 8))
        out = lanes.load_int64(job.out_rows + 8 * slot) + 4 * row
        for v in range(job.vectors):
            total = lanes.splat(0.0)
            x = job.x_bytes + slot * n_blocks * job.x_panel_bytes
            x_scales = job.x_scales + slot * n_blocks * job.n_scales * 4
            x_starts = job.x_starts + slot * n_blocks * job.n_starts * 4
            some = rows + 8 * LANES * v
            for block in range(n_blocks):
                at = block * job.block_bytes
                total = to_product(
                    unpack, some, at, total, x, x_scales, x_starts, ahead, job.fetch_step
                )
                ahead += LANES * job.block_bytes
                x += job.x_panel_bytes
                x_scales += job.n_scales * 4
                x_starts += job.n_starts * 4
            lanes.store_column(total, out + 4 * LANES * v, n_rows - LANES * v)
        task = _next(job, task, left, counter)
    return True


@kernel(inline=True)
def single_float_columns(read, read_one, weight_bytes, job_at, worker, counter, max_tasks):
    """`single_columns` of a float format: row by row, as the rows lie in memory."""
    job = lanes.load_job(job_at)
    task = _first_task(job, counter)
    for left in range(max_tasks - 1, -1, -1):
        if task >= job.n_tasks:
            return False
        matrix, row, n_rows, weights = _task_rows(job, task)
        slot = lanes.load_int64(job.groups + 16 * lanes.load_int64(matrix + 8))
        x = lanes.load_int64(job.x_rows + 8 * slot)
        out = lanes.load_int64(job.out_rows + 8 * slot) + 4 * row
        for i in range(n_rows):
            at = weights + i * job.row_stride
            product = floats.row_product(read, read_one, weight_bytes, at, x, job)
            lanes.put(out + 4 * i, product)
        if left > 0 or (task + 1) % job.stretch != 0:
            task = _task_after(job, task, counter)
    return True


# ---------------------------------------------------------------- signed bytes of x


@kernel(inline=True)
def unpack_bytes(to_panel, unpack, rows, job, memory, v, k, offset, ahead):
    """A block of rows into its place in the panel."""
    panel_bytes, scales_bytes = panel_sizes(job)
    block = offset // job.block_weights
    panel = memory + v * panel_bytes + block * job.panel_bytes * LANES
    scales = memory + VECTORS * panel_bytes + v * scales_bytes + block * job.n_scales * VECTOR
    at = k // job.block_weights * job.block_bytes
    to_panel(unpack, rows, at, panel, scales, ahead, job.fetch_step)


# ---------------------------------------------------------------- float32 x


@kernel(inline=True)
def pass_floats(zero, width, job, place):
    """One group of columns over one chunk of k, which is summed apart: that halves the error."""
    slot, first, n_k, memory, row, n_rows = place
    outs, x_rows = job.out_rows + 8 * slot, job.x_rows + 8 * slot
    panel_stride = job.chunk * VECTOR
    panel, x, total = memory, first * 4, zero
    for _ in range(n_k // 4):
        total = lanes.fma_tile_4(total, panel, panel_stride, x_rows, x)
        panel += 4 * VECTOR
        x += 16
    for _ in range(n_k % 4):
        total = lanes.fma_tile_1(total, panel, panel_stride, x_rows, x)
        panel += VECTOR
        x += 4
    if first > 0:
        total = lanes.add_tiles(lanes.load_tile(zero, outs, row * 4, n_rows), total)
    lanes.store_tile(total, outs, row * 4, n_rows)


@kernel(inline=True)
def fill_floats(fill, rows, job, memory, v, k, offset, n_k, ahead):
    spare = memory + VECTORS * job.chunk * VECTOR
    fill(rows, job, spare, k, n_k, memory + (v * job.chunk + offset) * VECTOR, ahead)
