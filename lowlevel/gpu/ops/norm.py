"""Root mean square normalisation on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..instances import RMS_NORM
from . import launch

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array


_WARP = 32
# Rows of up to so many columns are a warp's, longer ones a block's.
WARP_COLUMNS = 1024


def rms_norm(
    device: LaunchDevice,
    x: Rows,
    add: Rows | None,
    weight: Array | None,
    eps: float,
    out: Rows,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.rms_norm`; x, add and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not x.array.size:
        return
    kernel = RMS_NORM[launch.kinds(x, out)]
    row_threads = _WARP if x.shape[2] <= WARP_COLUMNS else kernel.block
    operands = dict(x=x, out=out) if add is None else dict(x=x, y=add, out=out)
    call, addends = launch.rows_call(device, (weight,), **operands), None
    if add is not None:
        addends, call["y_type"] = add.array, launch.FLOAT_TYPES[launch.kinds(add)[0]]
    n_blocks = -(-x.n_rows * row_threads // kernel.block)
    arguments = (x.array, addends, weight, out.array, eps, row_threads, call)
    device.launch(kernel, n_blocks, arguments)
