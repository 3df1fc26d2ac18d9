"""Sums, multiples and casts of rows on a device that runs CUDA kernels."""

from .. import cast as casts
from ..instances import ADD, SCALE
from . import launch


def add(device, x, y, row_ids, out, n_threads):
    """See `lowlevel.ops.add`; x, y and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not x.array.size:
        return
    kernel = ADD[launch.kinds(x, y)]
    call = launch.rows_call(device, x=x, y=y, out=out)
    id_step = 0 if row_ids is None else row_ids.strides[0] // row_ids.itemsize
    arguments = (x.array, y.array, row_ids, out.array, id_step, y.shape[1], call)
    device.launch(kernel, launch.n_blocks(kernel, x.n_rows, x.shape[2]), arguments)


def scale(device, x, factor, n_threads):
    """See `lowlevel.ops.scale`; x as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not x.array.size:
        return
    (kind,) = launch.kinds(x)
    kernel, call = SCALE[kind], launch.rows_call(device, x=x)
    n_blocks = launch.n_blocks(kernel, x.n_rows, x.shape[2])
    device.launch(kernel, n_blocks, (x.array, factor, call))


def cast(device, source, target, n_threads):
    """See `lowlevel.ops.cast`; both as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    arrays = (rows.array if rows.array.ndim == 3 else rows.array[None] for rows in (target, source))
    casts.cast(device, *arrays)
