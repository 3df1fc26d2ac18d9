"""Joining arrays along one axis into one contiguous array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import checks, devices
from .shapes import resolve_dtype

if TYPE_CHECKING:
    from .arrays import Array


def concat(arrays: Sequence[Array], axis: int = 0, out: Array | None = None) -> Array:
    """Join `arrays` along `axis`.

    Every element is copied once, from where it lies to its place: inputs of any strides (negative and
    zero ones too) are read as they are, and nothing of their size is allocated besides the result.

    Parameters
    ----------
    arrays : sequence of array
        At least one, with at least one axis each. One dtype (bool, integers, floats of any width, complex, structured,
        without Python objects), one shape except along `axis`. Those of length 0 along `axis` add nothing.
    axis : int
        -1 is the last axis.
    out : array, optional
        Where the result goes: the result's shape and dtype, writable, any strides that put no two
        elements in one place; shares no element with an input.

    Returns
    -------
    array
        `out`, or a new C-contiguous array on the inputs' device.

    Raises
    ------
    TypeError, ValueError
        Before anything is written, saying which argument does not fit, and what would.
    """
    arrays, device = _check_arrays(arrays)
    axis = _check_axis(axis, arrays[0].ndim)
    _check_agreement(arrays, axis)
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    if out is None:
        out = device.empty(tuple(shape), arrays[0].dtype)
    else:
        _check_out(out, tuple(shape), arrays, device)
    device.join(device.plain(out), arrays, axis)
    return out


def _check_arrays(arrays):
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays: expected a list or tuple of arrays, got {type(arrays).__name__}")
    if not arrays:
        raise ValueError("arrays: expected at least one array, got none")
    device = devices.of_array(arrays[0], "arrays[0]")
    for i, array in enumerate(arrays):
        checks.check_device(array, f"arrays[{i}]", device, "arrays[0]")
    arrays = [device.plain(array) for array in arrays]
    for i, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(
                f"arrays[{i}]: 0-d, there is no axis to join along; reshape it to (1,)"
            )
        if array.dtype.hasobject:
            raise TypeError(f"arrays[{i}]: {array.dtype} holds Python objects; give plain values")
    resolve_dtype(arrays[0].dtype)
    return arrays, device


def _check_axis(axis, ndim):
    index = checks.whole_number(axis, "axis", -ndim, ndim - 1)
    return index % ndim


def _check_agreement(arrays, axis):
    first = arrays[0]
    wanted = _without(first.shape, axis)
    for i, array in enumerate(arrays):
        if array.dtype != first.dtype:
            raise TypeError(f"arrays[{i}]: expected {first.dtype} as arrays[0], got {array.dtype}")
        if array.ndim != first.ndim or _without(array.shape, axis) != wanted:
            raise ValueError(
                f"arrays[{i}]: shape {array.shape} does not fit {first.shape} of arrays[0]; "
                f"all lengths but that of axis {axis} must agree"
            )


def _check_out(out, shape, arrays, device):
    checks.check_device(out, "out", device, "arrays[0]")
    if out.dtype != arrays[0].dtype:
        raise TypeError(f"out: expected {arrays[0].dtype} like the inputs, got {out.dtype}")
    checks.check_shape(out, "out", shape)
    checks.check_writable(out, "out", device)
    for i, array in enumerate(arrays):
        checks.check_apart(out, "out", device, {f"arrays[{i}]": array})


def _without(shape, axis):
    return (*shape[:axis], *shape[axis + 1 :])
