"""Running an attention plan on devices that launch CUDA kernels: operands to launches.

Shared by "cuda:N" and "cudasim"; what differs between them is below `kernel_device.KernelDevice`.
"""

from lowlevel import devices

from . import layout


def run(plan, operands, scratch):
    """Compute ``operands.out`` (and lse) by `plan`, in the order of the device's other work.

    Parameters
    ----------
    plan : AttentionPlan
    operands : Operands
        Checked by `lowlevel.attention`; arrays of the plan's device, but that alibi_slopes and sinks may be NumPy's.
    scratch : dict of str to array
        The plan's blocks as float32 arrays, 1-D.
    """
    device = devices.get(plan.device)
    operands = operands._replace(
        alibi_slopes=_on_device(device, operands.alibi_slopes),
        sinks=_on_device(device, operands.sinks),
    )
    if plan.path == layout.TILES:
        from . import attention_tiles as way
    else:
        from . import attention_fused as way
    way.run(device, plan, operands, scratch)


def _on_device(device, values):
    if values is None or device.address(values) is not None:
        return values
    return device.from_host(values)
