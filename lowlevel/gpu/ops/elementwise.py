"""Sums, multiples and casts of rows on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import cast as casts
from ..instances import ADD, SCALE
from . import launch

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array


def add(
    device: LaunchDevice, x: Rows, y: Rows, row_ids: Array | None, out: Rows, n_threads: int | None
) -> None:
    """See `lowlevel.ops.add`; x, y and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not x.array.size:
        return
    kernel = ADD[launch.kinds(x, y)]
    call = launch.rows_call(device, x=x, y=y, out=out)
    id_step = 0 if row_ids is None else row_ids.strides[0] // row_ids.itemsize
    arguments = (x.array, y.array, row_ids, out.array, id_step, y.shape[1], call)
    device.launch(kernel, launch.n_blocks(kernel, x.n_rows, x.shape[2]), arguments)


def scale(device: LaunchDevice, x: Rows, factor: float, n_threads: int | None) -> None:
    """See `lowlevel.ops.scale`; x as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not x.array.size:
        return
    (kind,) = launch.kinds(x)
    kernel, call = SCALE[kind], launch.rows_call(device, x=x)
    n_blocks = launch.n_blocks(kernel, x.n_rows, x.shape[2])
    device.launch(kernel, n_blocks, (x.array, factor, call))


def cast(device: LaunchDevice, source: Rows, target: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.cast`; both as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    arrays = (rows.array if rows.array.ndim == 3 else rows.array[None] for rows in (target, source))
    casts.cast(device, *arrays)
