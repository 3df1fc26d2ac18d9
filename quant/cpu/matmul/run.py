"""Products on the CPU: tables and scratch of one call, and the kernels run over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import kept
from lowlevel.cpu.address import address
from lowlevel.cpu.threads import SLICE_SECONDS, run_tasks

from . import activations
from . import kernels as matmul_kernels
from .layouts import ROWS
from .tables import Tables, tables_of_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.devices import Device

    from ...tensor import QuantTensor
    from .plan import MatmulPlan


# A cautious guess of a worker's rate (multiply-adds a second), to size its slices of work.
_RATE = 2e10
# Floats of x worth a helper thread when they are quantised.
_QUANTISE_WORTH = 1 << 17


def run(
    plan: MatmulPlan,
    device: Device,
    x: np.ndarray,
    matrices: Sequence[QuantTensor],
    out: np.ndarray,
    experts: np.ndarray | None,
    x_rows: np.ndarray | None,
    scratch: np.ndarray,
) -> None:
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
    tables = _tables(len(out), x.shape[1], experts, x_rows, matrices[0])
    products: list[_Product] = []
    at = 0
    for part, t in zip(plan.parts, matrices, strict=True):
        n_rows = t.shape[-2]
        if n_rows:
            target = out if len(matrices) == 1 else out[:, at : at + n_rows]
            # All have the same columns of one format: x is quantised for the first of them.
            x_is_there = bool(products)
            products.append(_Product(part, plan.path, x, t, target, tables, scratch, x_is_there))
        at += n_rows

    def again():
        if experts is not None or x_rows is not None:  # others may stand there now
            tables.fill()
        for product in products:
            product()

    kept.launch(again)


def _tables(n, columns, experts, x_rows, t):
    """Which rows of x meet which matrices."""
    if experts is None and x_rows is None:
        return tables_of_one(n, columns)
    n_experts = 1 if experts is None else t.shape[0]
    return Tables(n, columns, _indices(experts), n_experts, _indices(x_rows))


def _indices(array):
    """Where it lies, if the tables' kernel reads it."""
    if array is None or array.dtype in (np.int32, np.int64):
        return array
    return array.astype(np.int64)


class _Product:
    """One matrix, or one stack of them: called, it runs the kernels over what the tables say then.

    `x_is_there`: the product before has left x in the scratch, quantised.
    """

    def __init__(self, part, path, x, t, out, tables, scratch, x_is_there):
        self._part, self._path, self._tables = part, path, tables
        self._quantises = not (part.exact or x_is_there)
        self._job, data = address(scratch), t.data
        self._columns, self._n_values = x.shape[1], len(out) * x.shape[1]
        self._n_panels = -(-t.shape[-2] // ROWS)
        self._places = (
            self._job,
            part.job_address,
            tables.address,
            address(x),
            x.strides[0],
            address(out),
            out.strides[0],
            address(data),
            data.strides[0] if t.ndim == 3 else 0,
            data.strides[-2],
        )

    def __call__(self):
        part, job, tables = self._part, self._job, self._tables
        n_slots, n_groups, n_matrices = tables.n_slots, tables.n_groups, tables.n_matrices
        is_small = self._n_values < _QUANTISE_WORTH or n_groups == 1
        now = activations.COPY if part.copies_x else 0
        if is_small and self._quantises:
            now = activations.QUANTISE
        activations.begin(*self._places, now)
        if self._quantises and not is_small:
            n_quantising = min(part.n_workers, n_groups, 1 + self._n_values // _QUANTISE_WORTH)
            some = _tasks_of_slice(n_groups, 6 * self._columns * 8)
            run_tasks(n_quantising, activations.quantise.address, job, some)
        kernel = _kernels(part, self._path, n_slots == n_matrices)[part.name]
        cost = ROWS * self._columns * (max(1, n_slots // n_matrices) + 8)
        some = _tasks_of_slice(self._n_panels * n_matrices, cost)
        some = -(-some // part.stretch) * part.stretch  # whole stretches
        run_tasks(part.n_workers, kernel.address, job, some)


def _kernels(part, path, is_column_each):
    """The kernels of a path; which one "by expert" means, the experts that are asked for decide."""
    if path == "single" or (path == "by expert" and is_column_each):
        return matmul_kernels.MULTIPLY_COLUMN
    if part.exact and part.name in matmul_kernels.MULTIPLY_EXACT:
        return matmul_kernels.MULTIPLY_EXACT
    return matmul_kernels.MULTIPLY


def _tasks_of_slice(n_tasks, task_cost):
    """Tasks that a worker does before it returns, which lets Ctrl-C through."""
    return min(n_tasks, max(1, int(SLICE_SECONDS * _RATE / task_cost)))
