"""Copies between arrays of any strides, cut into launches of one kernel (concat.cu).

An array's item is bytes: an axis of its own, which joins its neighbours where they lie without a
gap. The widest unit that divides everything is what a thread copies.
"""

import numpy as np

from lowlevel.axes import join_axes

from .instances import COPY

MAX_AXES = 8
# Units that one launch copies: their number is counted in 32 bits, with a bit to spare.
MAX_UNITS = 2**31 - 256
AXES = np.dtype(
    [
        (
            "axes",
            [("source_stride", "<i8"), ("target_stride", "<i8")]
            + [("length", "<u4"), ("multiplier", "<u4")],
            (MAX_AXES,),
        ),
        ("n_axes", "<i4"),
        ("shifts", "u1", (3, 4)),
    ]
)


def copy(device, target, source):
    """Copy `source` into `target`, both on `device`, of one shape and dtype, without common elements."""
    if not target.size:
        return
    item = target.dtype.itemsize
    # The axis that moves least in the target comes last: neighbouring threads write side by side.
    order = sorted(range(target.ndim), key=lambda i: -abs(target.strides[i]))
    axes = join_axes(
        (*(target.shape[i] for i in order), item),
        (*(source.strides[i] for i in order), 1),
        (*(target.strides[i] for i in order), 1),
    )  # (length, source stride, target stride), in bytes
    if not axes or (len(axes) == 1 and axes[0][1:] == (1, 1)):
        device.copy_flat(target, source)
        return
    if len(axes) >= MAX_AXES:
        _copy_by_parts(device, target, source)
        return
    if axes[-1][1:] != (1, 1):  # items of one byte, apart from each other
        axes.append((1, 1, 1))
    unit = _widest_unit(axes, device.address(source), device.address(target))
    axes[-1] = (axes[-1][0] // unit, unit, unit)
    axes = [axis for axis in axes if axis[0] > 1]
    n_units = target.size * item // unit
    if n_units > MAX_UNITS:
        _copy_by_parts(device, target, source)
        return
    arguments = (source, target, _layout(axes, unit), n_units)
    kernel = COPY[unit]
    device.launch(kernel, -(-n_units // kernel.block), arguments)


def _copy_by_parts(device, target, source):
    """The two halves of the longest axis, one after the other."""
    axis = max(range(target.ndim), key=lambda i: target.shape[i])
    middle = target.shape[axis] // 2
    for half in (slice(None, middle), slice(middle, None)):
        part = (slice(None),) * axis + (half,)
        copy(device, target[part], source[part])


def _widest_unit(axes, *addresses):
    """The largest of COPY's units that divides addresses, strides and the innermost length."""
    numbers = [axes[-1][0], *addresses, *(stride for axis in axes[:-1] for stride in axis[1:])]
    return max(unit for unit in COPY if all(number % unit == 0 for number in numbers))


def _layout(axes, unit):
    """The kernel's Axes for (length, source stride, target stride), slowest first, in bytes."""
    layout = np.zeros((), AXES)
    layout["n_axes"] = len(axes)
    for i, (length, source_stride, target_stride) in enumerate(reversed(axes)):
        multiplier, shift = divisor(length)
        layout["axes"][i] = (source_stride // unit, target_stride // unit, length, multiplier)
        layout["shifts"].reshape(-1)[i] = shift
    return layout


def divisor(length):
    """(multiplier, shift) with ``n // length == ((n * multiplier >> 32) + n) >> shift`` for n < 2**31."""
    shift = (length - 1).bit_length()
    return -(-(2 ** (32 + shift)) // length) - 2**32, shift
