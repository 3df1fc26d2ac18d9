"""Gated activations on a device that runs CUDA kernels."""

from ..instances import GATED
from . import launch

_KINDS = {"swiglu": 0, "geglu": 1, "clamped_swiglu": 2}  # gated.cu's GatedKind


def gated(device, kind, gate, up, out, alpha, limit, n_threads):
    """See `lowlevel.ops.swiglu` and its siblings; arrays as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not gate.array.size:
        return
    kernel = GATED[launch.kinds(gate, out)]
    call = launch.rows_call(device, x=gate, y=up, out=out)
    arguments = (gate.array, up.array, out.array, _KINDS[kind], alpha, limit, call)
    device.launch(kernel, launch.n_blocks(kernel, gate.n_rows, gate.shape[2]), arguments)
