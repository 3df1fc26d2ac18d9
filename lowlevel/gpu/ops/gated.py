"""Gated activations on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..instances import GATED
from . import launch

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.gpu.launch_device import LaunchDevice


_KINDS = {"swiglu": 0, "geglu": 1, "clamped_swiglu": 2}  # gated.cu's GatedKind


def gated(
    device: LaunchDevice,
    kind: str,
    gate: Rows,
    up: Rows,
    out: Rows,
    alpha: float,
    limit: float,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.swiglu` and its siblings; arrays as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not gate.array.size:
        return
    kernel = GATED[launch.kinds(gate, out)]
    call = launch.rows_call(device, x=gate, y=up, out=out)
    arguments = (gate.array, up.array, out.array, _KINDS[kind], alpha, limit, call)
    device.launch(kernel, launch.n_blocks(kernel, gate.n_rows, gate.shape[2]), arguments)
