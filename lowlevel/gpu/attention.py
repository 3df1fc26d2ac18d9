"""Running an attention plan on devices that launch CUDA kernels: operands to launches.

Shared by "cuda:N" and "cudasim"; what differs between them is below `kernel_device.KernelDevice`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layout
from .launch_device import launch_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowlevel.attention.call import Operands
    from lowlevel.attention.plan import AttentionPlan
    from lowlevel.shapes import Array


def run(plan: AttentionPlan, operands: Operands, scratch: Mapping[str, Array]) -> None:
    """Compute ``operands.out`` (and lse) by `plan`, in the order of the device's other work.

    Parameters
    ----------
    plan : AttentionPlan
    operands : Operands
        Checked by `lowlevel.attention`; arrays of the plan's device, but that alibi_slopes and sinks may be NumPy's.
    scratch : dict of str to array
        The plan's blocks as float32 arrays, 1-D.
    """
    device = launch_device(plan.device)
    operands = operands._replace(
        alibi_slopes=_on_device(device, operands.alibi_slopes),
        sinks=_on_device(device, operands.sinks),
    )
    if plan.path == layout.TILES:
        from .attention_tiles import run as run_path
    else:
        from .attention_fused import run as run_path
    run_path(device, plan, operands, scratch)


def _on_device(device, values):
    if values is None or device.address(values) is not None:
        return values
    return device.from_host(values)
