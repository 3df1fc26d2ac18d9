"""Keys or values out of latents: a chunk of rows times a head's weights, by the register tile.

Row j of head h becomes ``[latent[j] . weights[h] | tail[j]]``: MLA's keys end in a part that all heads
share (DeepSeek-V2, arXiv:2405.04434, equations 10 to 15), its values do not.
"""

import numpy as np

from . import simd
from .gemm_tile import TILE_COLUMNS, TILE_ROWS, TILE_VECTORS, make_gemm_tile
from .jit import kernel, task_kernel

# Latents that a task widens and multiplies: they stay in the second-level cache for all heads.
ROWS_OF_A_TASK = 64
# Rows of a head's weights that are turned at a time, a cache line of each column.
TURNED_ROWS = 16

_gemm = make_gemm_tile(TILE_ROWS, TILE_VECTORS)
_gemm_row = make_gemm_tile(1, TILE_VECTORS)

# All that a worker reads. Addresses and strides are in bytes, but for `weights_row` and `out_key`, in float32 values.
CALL = np.dtype(
    [
        (name, np.int64)
        for name in (
            "n_keys n_heads rank d "
            "latent latent_key latent_fill wide weights weights_head weights_row "
            "tail tail_key tail_fill d_tail out out_head out_key"
        ).split()
    ]
)


@kernel(inline=True)
def _multiply(call, rows, weights, out, n):
    """`n` rows of out = rows . weights; the last tile of rows overlaps the one before."""
    for column in range(0, call.d, TILE_COLUMNS):
        w, o = weights + 4 * column, out + 4 * column
        if n < TILE_ROWS:
            for r in range(n):
                _gemm_row(
                    rows + 4 * r * call.rank, call.rank, 1, w, call.weights_row,
                    o + 4 * r * call.out_key, call.out_key, call.rank, False,
                )  # fmt: skip
            continue
        for start in range(0, n, TILE_ROWS):
            r = min(start, n - TILE_ROWS)
            _gemm(
                rows + 4 * r * call.rank, call.rank, 1, w, call.weights_row,
                o + 4 * r * call.out_key, call.out_key, call.rank, False,
            )  # fmt: skip


@kernel
def decompress(call, counter):
    """One worker; tasks are `ROWS_OF_A_TASK` keys, for all heads."""
    while True:
        key = simd.take_task(counter, 1) * ROWS_OF_A_TASK
        if key >= call.n_keys:
            return False
        n = min(np.int64(ROWS_OF_A_TASK), call.n_keys - key)
        rows = call.wide + 4 * key * call.rank
        latent = call.latent + key * call.latent_key
        simd.call_fill(call.latent_fill, latent, call.latent_key, n, call.rank, rows, call.rank)
        for h in range(call.n_heads):
            out = call.out + h * call.out_head + 4 * key * call.out_key
            _multiply(call, rows, call.weights + h * call.weights_head, out, n)
            if call.d_tail:  # after the products, which may write past their columns
                simd.call_fill(
                    call.tail_fill, call.tail + key * call.tail_key, call.tail_key, n,
                    call.d_tail, out + 4 * call.d, call.out_key,
                )  # fmt: skip


# What `turn` is given: the address of these, int64; strides in bytes.
TURN = (
    "n_heads d rank rows columns source source_head source_row source_block fill spare "
    "weights weights_head weights_row"
).split()


@task_kernel
def turn(job, worker, counter, max_tasks):
    """Encoded weights, (heads, d, rank), as floats (heads, rank, d); tasks are `rows` of a head.

    A block of `columns` of each is decoded to the worker's own part of the memory at `spare`, and written by columns.
    """
    n_heads, d, rank = simd.read_i64(job), simd.read_i64(job + 8), simd.read_i64(job + 16)
    most_rows, columns = simd.read_i64(job + 24), simd.read_i64(job + 32)
    source, head, row = simd.read_i64(job + 40), simd.read_i64(job + 48), simd.read_i64(job + 56)
    block, fill = simd.read_i64(job + 64), simd.read_i64(job + 72)
    spare = simd.read_i64(job + 80) + 4 * worker * most_rows * columns
    out, out_head, out_row = (
        simd.read_i64(job + 88), simd.read_i64(job + 96), simd.read_i64(job + 104)
    )  # fmt: skip
    tasks_of_head = (d + most_rows - 1) // most_rows
    while True:
        task = simd.take_task(counter, 1)
        if task >= n_heads * tasks_of_head:
            return False
        h, first = task // tasks_of_head, task % tasks_of_head * most_rows
        n_rows = min(most_rows, d - first)
        for k in range(0, rank, columns):
            at = source + h * head + first * row + k // columns * block
            simd.call_fill(fill, at, row, n_rows, columns, spare, columns)
            target = out + h * out_head + k * out_row + 4 * first
            for i in range(columns):
                for r in range(n_rows):
                    x = simd.read_f32(spare, r * columns + i)
                    simd.write_f32(target + i * out_row, r, x)
