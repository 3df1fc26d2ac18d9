"""Products on the CPU: tables and scratch of one call, and the kernels run over them."""

import functools

import numpy as np

from lowlevel.cpu.threads import SLICE_SECONDS, run_workers
from quant.cpu import activations, matmul_kernels
from quant.cpu.matmul_layouts import LAYOUTS, ROWS, VECTORS, PanelLayout
from quant.cpu.matmul_plan import group_columns, group_one
from quant.cpu.matmul_tiles import Job

# A cautious guess of a worker's rate (multiply-adds a second), to size its slices of work.
_RATE = 2e10
# Floats of x worth a helper thread when they are quantised.
_QUANTISE_WORTH = 1 << 17
_FLOAT_LAYOUT = PanelLayout(1, 0, 0, 0)
# The experts of a plain matrix.
_PLAIN = np.zeros(1, np.int64)


def run(plan, x, t, out, order, used_experts, counts, scratch):
    """Fill `out`. Everything is checked before; see quant.matmul.

    Parameters
    ----------
    plan : MatmulPlan
    x, out : numpy.ndarray of float32, (n, columns) and (n, rows)
    t : QuantTensor, (rows, columns) or (experts, rows, columns)
    order : numpy.ndarray or None
        Rows of x sorted by expert.
    used_experts, counts : sequence of int
        Experts with rows, and how many; [0] and [n] for a plain matrix.
    scratch : numpy.ndarray of uint8
        At least plan.scratch_bytes, from an address that is a multiple of 64.
    """
    if order is None:
        sources, groups, ends = group_one(counts[0])
    else:
        sources, groups, ends = group_columns(counts)
        sources = order[sources]
    n_matrices = len(ends)
    job = _job(plan, scratch.ctypes.data, t, len(groups), n_matrices)
    is_small = x.size < _QUANTISE_WORTH or len(groups) == 1
    activations.begin(
        job,
        sources,
        groups,
        ends,
        _PLAIN if order is None else np.asarray(used_experts, np.int64),
        (x.ctypes.data, x.strides[0], out.ctypes.data, out.strides[0]),
        (t.data.ctypes.data, t.data.strides[0] if t.ndim == 3 else 0),
        is_small and not plan.exact,
    )
    if not (plan.exact or is_small):
        n_workers = min(plan.n_workers, len(groups), 1 + x.size // _QUANTISE_WORTH)
        _run_kernel(
            n_workers,
            lambda counter, i, some: activations.quantise(job, counter, some),
            len(groups),
            6 * x.shape[1] * 8,
        )
    if plan.exact and not t.format.is_float:
        kernels = matmul_kernels.MULTIPLY_EXACT
    elif len(sources) == n_matrices:
        kernels = matmul_kernels.MULTIPLY_COLUMN
    else:
        kernels = matmul_kernels.MULTIPLY
    kernel = kernels[t.format.name]
    columns_per_matrix = max(1, sources.size // n_matrices)
    _run_kernel(
        plan.n_workers,
        lambda counter, i, some: kernel(job, i, counter, some),
        job.n_tasks,
        ROWS * x.shape[1] * (columns_per_matrix + 8),
    )


def _run_kernel(n_workers, call, n_tasks, task_cost):
    """Run ``call(counter, worker, max_tasks)`` on every worker, in slices that let Ctrl-C through."""
    counter = np.zeros(1, np.int64)
    slice_tasks = max(1, int(SLICE_SECONDS * _RATE / task_cost))
    run_workers(n_workers, lambda i: call(counter, i, min(slice_tasks, n_tasks)), counter)


def _job(plan, scratch, t, n_groups, n_matrices):
    n_rows = t.shape[-2]
    n_panels = -(-n_rows // ROWS)
    sections = plan.sections
    return Job(
        *_layout_fields(t.format.name),
        columns=t.shape[-1],
        piece=plan.piece,
        chunk=plan.chunk,
        n_rows=n_rows,
        row_stride=t.data.strides[-2],
        piece_bytes=plan.piece // t.format.block_weights * t.format.block_bytes,
        worker_bytes=plan.worker_bytes,
        n_panels=n_panels,
        n_tasks=n_panels * n_matrices,
        n_groups=n_groups,
        vectors=VECTORS,
        x_rows=scratch + sections["x_rows"],
        out_rows=scratch + sections["out_rows"],
        groups=scratch + sections["groups"],
        matrices=scratch + sections["matrices"],
        x_bytes=scratch + sections.get("x_bytes", 0),
        x_scales=scratch + sections.get("x_scales", 0),
        x_starts=scratch + sections.get("x_starts", 0),
        workers=scratch + sections["workers"],
    )


@functools.cache
def _layout_fields(name):
    """What a `Job` begins with."""
    layout = LAYOUTS.get(name, _FLOAT_LAYOUT)
    return tuple(getattr(layout, field) for field in Job._fields[: Job._fields.index("columns")])
