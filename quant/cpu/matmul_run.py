"""Products on the CPU: tables and scratch of one call, and the kernels run over them."""

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
    tables = _Tables(plan, scratch)
    tables.put("x_rows", _row_addresses(x, sources))
    tables.put("out_rows", _row_addresses(out, sources))
    tables.put("groups", groups)
    expert_stride = t.data.strides[0] if t.ndim == 3 else 0
    starts = [0, *ends[:-1]]
    matrices = [
        (t.data.ctypes.data + int(e) * expert_stride, start, end)
        for e, start, end in zip(used_experts, starts, ends, strict=True)
    ]
    tables.put("matrices", np.array(matrices, np.int64))
    job = _job(plan, tables, t, len(groups), len(matrices))
    if plan.exact:
        kernel = matmul_kernels.MULTIPLY_EXACT[t.format.name]
    else:
        single = groups[:, 1].max() == 1 and len(groups) == len(matrices)
        kernels = matmul_kernels.MULTIPLY_COLUMN if single else matmul_kernels.MULTIPLY
        kernel = kernels[t.format.name]
        n_workers = min(plan.n_workers, len(groups), 1 + x.size // _QUANTISE_WORTH)
        _run_kernel(
            n_workers,
            lambda counter, i, some: activations.quantise(job, counter, some),
            len(groups),
            6 * x.shape[1] * 8,
        )
    columns_per_matrix = max(1, sources.size // len(matrices))
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


class _Tables:
    """Sections of the scratch by name."""

    def __init__(self, plan, scratch):
        self._sections, self._scratch = plan.sections, scratch
        self._base = scratch.ctypes.data

    def put(self, name, values):
        start = self._sections[name]
        self._scratch[start : start + values.nbytes].view(np.int64)[:] = values.reshape(-1)

    def address(self, name):
        return self._base + self._sections[name] if name in self._sections else 0


def _row_addresses(array, rows):
    return array.ctypes.data + rows * array.strides[0]


def _job(plan, tables, t, n_groups, n_matrices):
    block, n_rows = t.format, t.shape[-2]
    layout = LAYOUTS.get(block.name, _FLOAT_LAYOUT)
    n_panels = -(-n_rows // ROWS)
    return Job(
        block_weights=layout.block_weights,
        block_bytes=layout.block_bytes,
        n_segments=layout.n_segments,
        segment_steps=layout.segment_steps,
        shift=layout.shift,
        n_min_segments=layout.n_min_segments,
        min_segment_steps=layout.min_segment_steps,
        min_run=layout.min_run,
        panel_bytes=layout.panel_bytes,
        n_scales=layout.n_scales,
        columns=t.shape[-1],
        piece=plan.piece,
        chunk=plan.chunk,
        n_rows=n_rows,
        row_stride=t.data.strides[-2],
        piece_bytes=plan.piece // block.block_weights * block.block_bytes,
        worker_bytes=plan.worker_bytes,
        n_panels=n_panels,
        n_tasks=n_panels * n_matrices,
        n_groups=n_groups,
        vectors=VECTORS,
        x_rows=tables.address("x_rows"),
        out_rows=tables.address("out_rows"),
        groups=tables.address("groups"),
        matrices=tables.address("matrices"),
        x_bytes=tables.address("x_bytes"),
        x_scales=tables.address("x_scales"),
        x_starts=tables.address("x_starts"),
        workers=tables.address("workers"),
    )
