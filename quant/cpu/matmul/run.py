"""Products on the CPU: tables and scratch of one call, and the kernels run over them."""

import numpy as np

from lowlevel.cpu import kept
from lowlevel.cpu.threads import SLICE_SECONDS, run_workers

from . import activations
from . import kernels as matmul_kernels
from .layouts import ROWS
from .plan import Tables, tables_of_one

# A cautious guess of a worker's rate (multiply-adds a second), to size its slices of work.
_RATE = 2e10
# Floats of x worth a helper thread when they are quantised.
_QUANTISE_WORTH = 1 << 17


def run(plan, device, x, matrices, out, experts, x_rows, scratch):
    """Fill `out`. Everything is checked before; see quant.matmul.

    Parameters
    ----------
    plan : MatmulPlan
    device : CpuDevice
    x, out : numpy.ndarray of float32, (n_x, columns) and (n, rows of all matrices)
    matrices : sequence of QuantTensor, (rows, columns) or (experts, rows, columns)
        As many as the plan has parts.
    experts : numpy.ndarray of int, (n,), or None
    x_rows : numpy.ndarray of int or None
        The row of x for each row of the output; None: the same.
    scratch : numpy.ndarray of uint8
        At least plan.scratch_bytes, from an address that is a multiple of 64.
    """
    tables = _tables(len(out), experts, x_rows, matrices[0])
    at = 0
    for part, t in zip(plan.parts, matrices, strict=True):
        n_rows = t.shape[-2]
        if n_rows:
            target = out if len(matrices) == 1 else out[:, at : at + n_rows]
            _multiply(part, plan.path, x, t, target, tables, scratch)
        at += n_rows


def _tables(n, experts, x_rows, t):
    """Which rows of x meet which matrices."""
    if experts is None:
        return tables_of_one(n) if x_rows is None else Tables([n], [0], None, x_rows)
    order = np.argsort(experts, kind="stable")
    counts = np.bincount(experts, minlength=t.shape[0])
    used = np.flatnonzero(counts)
    return Tables(counts[used], used, order, x_rows)


def _multiply(part, path, x, t, out, tables, scratch):
    """One matrix, or one stack of them."""
    job, data, columns = _address(scratch), t.data, x.shape[1]
    n_values = len(out) * columns
    is_small = n_values < _QUANTISE_WORTH or tables.n_groups == 1
    now = activations.COPY if part.copies_x else 0
    if is_small and not part.exact:
        now = activations.QUANTISE
    places = (
        job,
        part.job_address,
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
    n_quantising = 0
    if not (part.exact or is_small):
        n_quantising = min(part.n_workers, tables.n_groups, 1 + n_values // _QUANTISE_WORTH)
    kernel = _kernels(part, path, tables)[part.name]
    n_tasks = -(-t.shape[-2] // ROWS) * tables.n_matrices
    task_cost = ROWS * columns * (max(1, tables.n_slots // tables.n_matrices) + 8)

    def again(tables=tables):  # whose address is among the places
        activations.begin(*places)
        if n_quantising:
            _run_kernel(
                n_quantising,
                lambda counter, i, some: activations.quantise(job, counter, some),
                tables.n_groups,
                6 * columns * 8,
            )
        _run_kernel(
            part.n_workers,
            lambda counter, i, some: kernel(job, i, counter, some),
            n_tasks,
            task_cost,
        )

    kept.launch(again)


def _kernels(part, path, tables):
    """The kernels of a path; which one "by expert" means, the experts that are asked for decide."""
    if path == "single" or (path == "by expert" and tables.n_slots == tables.n_matrices):
        return matmul_kernels.MULTIPLY_COLUMN
    if part.exact and part.name in matmul_kernels.MULTIPLY_EXACT:
        return matmul_kernels.MULTIPLY_EXACT
    return matmul_kernels.MULTIPLY


def _address(array):
    return array.__array_interface__["data"][0]


def _run_kernel(n_workers, call, n_tasks, task_cost):
    """Run ``call(counter, worker, max_tasks)`` on every worker, in slices that let Ctrl-C through."""
    counter = np.zeros(1, np.int64)
    some = min(n_tasks, max(1, int(SLICE_SECONDS * _RATE / task_cost)))
    run_workers(n_workers, lambda i: call(counter, i, some), counter)
