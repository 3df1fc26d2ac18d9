"""The compiled products, one kernel a format and way.

Each is ``(job_at, worker, counter, max_tasks) -> bool``, with the address of a `Job`; see matmul_tiles. Numba compiles functions
that are passed to functions but keeps no closures on disk, hence named functions for each format.
"""

from lowlevel.cpu import float_reads
from lowlevel.cpu.jit import kernel

from . import floats, lanes, tiles
from . import unpack as unpackers

# ---------------------------------------------------------------- signed bytes of x


@kernel(inline=True)
def _q8_0_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q8_0, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q8_0(job_at, worker, counter, max_tasks):
    return tiles.panels(_q8_0_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q4_0_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q4_0, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q4_0(job_at, worker, counter, max_tasks):
    return tiles.panels(_q4_0_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _iq4_nl_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_iq4_nl, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_iq4_nl(job_at, worker, counter, max_tasks):
    return tiles.panels(_iq4_nl_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q2_k_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q2_k, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q2_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q2_k_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q3_k_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q3_k, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q3_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q3_k_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q4_k_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q4_k, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q4_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q4_k_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q6_k_piece(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.unpack_bytes(unpackers.unpack_q6_k, rows, job, memory, v, k, offset, ahead)


@kernel
def multiply_q6_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q6_k_piece, tiles.pass_bytes, job_at, worker, counter, max_tasks)


# ---------------------------------------------------------------- one row of x a matrix


@kernel
def multiply_column_q8_0(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q8_0, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_q4_0(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q4_0, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_iq4_nl(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_iq4_nl, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_q2_k(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q2_k, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_q3_k(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q3_k, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_q4_k(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q4_k, job_at, worker, counter, max_tasks)


@kernel
def multiply_column_q6_k(job_at, worker, counter, max_tasks):
    return tiles.single_columns(unpackers.unpack_q6_k, job_at, worker, counter, max_tasks)


# ---------------------------------------------------------------- float32 x


@kernel(inline=True)
def _q8_0_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q8_0, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q8_0(job_at, worker, counter, max_tasks):
    return tiles.panels(_q8_0_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q4_0_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q4_0, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q4_0(job_at, worker, counter, max_tasks):
    return tiles.panels(_q4_0_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _iq4_nl_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_iq4_nl, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_iq4_nl(job_at, worker, counter, max_tasks):
    return tiles.panels(_iq4_nl_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q2_k_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q2_k, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q2_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q2_k_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q3_k_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q3_k, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q3_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q3_k_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q4_k_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q4_k, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q4_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q4_k_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _q6_k_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_q6_k, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_q6_k(job_at, worker, counter, max_tasks):
    return tiles.panels(_q6_k_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _f32_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_f32, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_f32(job_at, worker, counter, max_tasks):
    return tiles.panels(_f32_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _f16_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_f16, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_f16(job_at, worker, counter, max_tasks):
    return tiles.panels(_f16_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


@kernel(inline=True)
def _bf16_floats(rows, job, memory, v, k, offset, n_k, ahead):
    tiles.fill_floats(floats.fill_bf16, rows, job, memory, v, k, offset, n_k, ahead)


@kernel
def multiply_exact_bf16(job_at, worker, counter, max_tasks):
    return tiles.panels(_bf16_floats, tiles.pass_floats, job_at, worker, counter, max_tasks)


# ---------------------------------------------------------------- float32 x, one row a matrix


@kernel
def multiply_column_f32(job_at, worker, counter, max_tasks):
    return tiles.single_float_columns(
        lanes.load_at_f32, lanes.load_f32, 4, job_at, worker, counter, max_tasks
    )


@kernel
def multiply_column_f16(job_at, worker, counter, max_tasks):
    return tiles.single_float_columns(
        float_reads.read_f16, float_reads.read_one_f16, 2, job_at, worker, counter, max_tasks
    )


@kernel
def multiply_column_bf16(job_at, worker, counter, max_tasks):
    return tiles.single_float_columns(
        float_reads.read_bf16, float_reads.read_one_bf16, 2, job_at, worker, counter, max_tasks
    )


# By format name: many rows of x, and one row of x a matrix, as bytes where the format is of blocks;
# float32 x for blocks.
MULTIPLY = {
    "Q8_0": multiply_q8_0,
    "Q4_0": multiply_q4_0,
    "IQ4_NL": multiply_iq4_nl,
    "Q2_K": multiply_q2_k,
    "Q3_K": multiply_q3_k,
    "Q4_K": multiply_q4_k,
    "Q6_K": multiply_q6_k,
    "F32": multiply_exact_f32,
    "F16": multiply_exact_f16,
    "BF16": multiply_exact_bf16,
}
MULTIPLY_COLUMN = {
    "Q8_0": multiply_column_q8_0,
    "Q4_0": multiply_column_q4_0,
    "IQ4_NL": multiply_column_iq4_nl,
    "Q2_K": multiply_column_q2_k,
    "Q3_K": multiply_column_q3_k,
    "Q4_K": multiply_column_q4_k,
    "Q6_K": multiply_column_q6_k,
    "F32": multiply_column_f32,
    "F16": multiply_column_f16,
    "BF16": multiply_column_bf16,
}
MULTIPLY_EXACT = {
    "Q8_0": multiply_exact_q8_0,
    "Q4_0": multiply_exact_q4_0,
    "IQ4_NL": multiply_exact_iq4_nl,
    "Q2_K": multiply_exact_q2_k,
    "Q3_K": multiply_exact_q3_k,
    "Q4_K": multiply_exact_q4_k,
    "Q6_K": multiply_exact_q6_k,
}
