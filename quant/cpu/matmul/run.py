"""Products on the CPU: tables and scratch of one call, and the kernels run over them."""

import numpy as np

from lowlevel.cpu.threads import SLICE_SECONDS, run_workers

from . import activations
from . import kernels as matmul_kernels
from .layouts import ROWS
from .plan import Tables, tables_of_one

# A cautious guess of a worker's rate (multiply-adds a second), to size its slices of work.
_RATE = 2e10
# Floats of x worth a helper thread when they are quantised.
_QUANTISE_WORTH = 1 << 17


def run(plan, x, t, out, order, used_experts, counts, x_rows, scratch):
    """Fill `out`. Everything is checked before; see quant.matmul.

    Parameters
    ----------
    plan : MatmulPlan
    x, out : numpy.ndarray of float32, (n_x, columns) and (n, rows)
    t : QuantTensor, (rows, columns) or (experts, rows, columns)
    order : numpy.ndarray or None
        Rows of the output sorted by expert.
    used_experts, counts : sequence of int
        Experts with rows, and how many; [0] and [n] for a plain matrix.
    x_rows : numpy.ndarray of int or None
        The row of x for each row of the output; None: the same.
    scratch : numpy.ndarray of uint8
        At least plan.scratch_bytes, from an address that is a multiple of 64.
    """
    if order is None and x_rows is None:
        tables = tables_of_one(len(out))
    else:
        tables = Tables(counts, used_experts, order, x_rows)
    job, data, columns = _address(scratch), t.data, x.shape[1]
    n_values = len(out) * columns
    is_small = n_values < _QUANTISE_WORTH or tables.n_groups == 1
    now = activations.COPY if plan.copies_x else 0
    if is_small and not plan.exact:
        now = activations.QUANTISE
    activations.begin(
        job,
        plan.job_address,
        tables.address,
        _address(x),
        x.strides[0],
        _address(out),
        out.strides[0],
        _address(data),
        data.strides[0] if t.ndim == 3 else 0,
        data.strides[-2],
        now,
    )
    if not (plan.exact or is_small):
        n_workers = min(plan.n_workers, tables.n_groups, 1 + n_values // _QUANTISE_WORTH)
        _run_kernel(
            n_workers,
            lambda counter, i, some: activations.quantise(job, counter, some),
            tables.n_groups,
            6 * columns * 8,
        )
    kernel = _kernels(plan, tables)[plan.name]
    n_panels = -(-t.shape[-2] // ROWS)
    _run_kernel(
        plan.n_workers,
        lambda counter, i, some: kernel(job, i, counter, some),
        n_panels * tables.n_matrices,
        ROWS * columns * (max(1, tables.n_slots // tables.n_matrices) + 8),
    )


def _kernels(plan, tables):
    if plan.exact and plan.name in matmul_kernels.MULTIPLY_EXACT:
        return matmul_kernels.MULTIPLY_EXACT
    if tables.n_slots == tables.n_matrices:
        return matmul_kernels.MULTIPLY_COLUMN
    return matmul_kernels.MULTIPLY


def _address(array):
    return array.__array_interface__["data"][0]


def _run_kernel(n_workers, call, n_tasks, task_cost):
    """Run ``call(counter, worker, max_tasks)`` on every worker, in slices that let Ctrl-C through."""
    counter = np.zeros(1, np.int64)
    some = min(n_tasks, max(1, int(SLICE_SECONDS * _RATE / task_cost)))
    run_workers(n_workers, lambda i: call(counter, i, some), counter)
