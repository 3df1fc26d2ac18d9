"""The compiled products, made for each format and way.

Each is ``(job_at, worker, counter, max_tasks) -> bool``, with the address of a `Job`; see tiles.py.
"""

from lowlevel.cpu import float_reads
from lowlevel.cpu.jit import kernel, task_kernel

from . import floats, lanes, tiles
from .block_formats import LAYOUTS, UNPACKERS
from .form import form


def _make_multiply(unpack, layout):
    """Many rows of x, as signed bytes."""
    to_panel, pass_group = form.to_panel_of(layout), form.pass_of(layout)

    @kernel(inline=True)
    def piece(rows, job, memory, v, k, offset, n_k, ahead):
        tiles.unpack_bytes(to_panel, unpack, rows, job, memory, v, k, offset, ahead)

    @task_kernel
    def multiply(job_at, worker, counter, max_tasks):
        return tiles.panels(piece, pass_group, job_at, worker, counter, max_tasks)

    return multiply


def _make_multiply_column(unpack, layout):
    """One row of x a matrix, as signed bytes."""
    to_product = form.to_product_of(layout)

    @task_kernel
    def multiply_column(job_at, worker, counter, max_tasks):
        return tiles.single_columns(to_product, unpack, job_at, worker, counter, max_tasks)

    return multiply_column


def _make_multiply_exact(fill):
    """Rows of x as they are, in float32."""

    @kernel(inline=True)
    def piece(rows, job, memory, v, k, offset, n_k, ahead):
        tiles.fill_floats(fill, rows, job, memory, v, k, offset, n_k, ahead)

    @task_kernel
    def multiply_exact(job_at, worker, counter, max_tasks):
        return tiles.panels(piece, tiles.pass_floats, job_at, worker, counter, max_tasks)

    return multiply_exact


def _make_multiply_column_exact(read, read_one, weight_bytes):
    """One row of x a matrix, in float32, with weights of a float format."""

    @task_kernel
    def multiply_column_exact(job_at, worker, counter, max_tasks):
        return tiles.single_float_columns(
            read, read_one, weight_bytes, job_at, worker, counter, max_tasks
        )

    return multiply_column_exact


def _block_fill(unpack, layout):
    return floats.make_fill(unpack, form.to_panel_of(layout), form.as_floats_of(layout))


_FILLS = {"F32": floats.fill_f32, "F16": floats.fill_f16, "BF16": floats.fill_bf16}
_READS = {
    "F32": (lanes.load_f32x16, lanes.load_f32, 4),
    "F16": (float_reads.read_f16, float_reads.read_one_f16, 2),
    "BF16": (float_reads.read_bf16, float_reads.read_one_bf16, 2),
}
# By format name: many rows of x, and one row of x a matrix, as bytes where the format is of blocks;
# float32 x for blocks.
MULTIPLY = {name: _make_multiply(unpack, LAYOUTS[name]) for name, unpack in UNPACKERS.items()} | {
    name: _make_multiply_exact(fill) for name, fill in _FILLS.items()
}
MULTIPLY_COLUMN = {
    name: _make_multiply_column(unpack, LAYOUTS[name]) for name, unpack in UNPACKERS.items()
} | {name: _make_multiply_column_exact(*reads) for name, reads in _READS.items()}
MULTIPLY_EXACT = {
    name: _make_multiply_exact(_block_fill(unpack, LAYOUTS[name]))
    for name, unpack in UNPACKERS.items()
}
