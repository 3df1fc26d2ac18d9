"""What the operations check of their arrays, and where a device's kernels for them are."""

from __future__ import annotations

import functools
import importlib
import math
import numbers
from collections.abc import Collection
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import devices
from lowlevel.shapes import dtype_name

if TYPE_CHECKING:
    from lowlevel.arrays import Array
    from lowlevel.devices import Device

FLOATS = ("float32", "float16", "bfloat16")


class Rows(NamedTuple):
    """An array as rows: (planes, rows of a plane, columns), the columns side by side.

    Attributes
    ----------
    array : array
    shape : tuple of int
        Planes, rows, columns.
    plane, row : int
        Strides in bytes.
    """

    array: Any
    shape: tuple
    plane: int
    row: int

    @property
    def n_rows(self) -> int:
        """Of all planes."""
        return self.shape[0] * self.shape[1]


@functools.cache
def room(device_room: str, name: str) -> ModuleType:
    """The module of a device's room that runs the operations of `name`; importing it may load Numba."""
    return importlib.import_module(f"lowlevel.{device_room}.ops.{name}")


@functools.cache
def activations(device_room: str) -> tuple:
    """Names of the dtypes that activations have in a room."""
    return importlib.import_module(f"lowlevel.{device_room}.ops").ACTIVATIONS


def check_array(array: Any, name: str, device: Device, dtypes: tuple) -> None:
    """Raise unless `array`, the argument `name`, lies on `device` and has one of `dtypes` (names).

    Raises
    ------
    TypeError
        No array, of another device, or another dtype.
    """
    there = devices.of_array(array, name)
    if there is not device:
        raise TypeError(
            f"{name}: lies on {there.name}, the first argument on {device.name}; "
            f"lowlevel.asarray brings either to the other's device"
        )
    if dtype_name(array.dtype) not in dtypes:
        raise TypeError(
            f"{name}: expected {' or '.join(dtypes)} on {device.name}, got {array.dtype}"
        )


def rows_of(
    array: Any, name: str, device: Device, dtypes: tuple, shape: tuple | None = None
) -> Rows:
    """`array`, the argument `name`, as `Rows`: two or three axes, the last contiguous.

    Parameters
    ----------
    shape : tuple of int, optional
        What the array's must be.

    Raises
    ------
    TypeError
        As `check_array` does.
    ValueError
        Another shape, or strides that kernels cannot walk.
    """
    check_array(array, name, device, dtypes)
    if shape is not None and tuple(array.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(array.shape)}")
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected rows, (n_tokens, n) or (planes, n_tokens, n); got shape {tuple(array.shape)}"
        )
    check_alignment(array, name, device)
    if array.shape[-1] > 1 and array.size and array.strides[-1] != array.itemsize:
        raise ValueError(
            f"{name}: the last axis must be contiguous; its stride is {array.strides[-1]} bytes, not {array.itemsize}"
        )
    if array.ndim == 2:
        return Rows(array, (1, *array.shape), 0, array.strides[0])
    return Rows(array, tuple(array.shape), array.strides[0], array.strides[1])


def check_alignment(array: Array, name: str, device: Device) -> None:
    """Raise ValueError unless every item of `array` stands at a multiple of its size."""
    item = array.itemsize
    if array.size and (device.address(array) % item or any(s % item for s in array.strides)):
        raise ValueError(f"{name}: the array is not aligned to its {item}-byte items")


def check_writable(array: Array, name: str, device: Device) -> None:
    """Raise ValueError unless `array` can be written, every element at a place of its own."""
    if not device.writable(array):
        raise ValueError(f"{name}: read-only; give an array that can be written")
    if device.overlaps_itself(array):
        raise ValueError(f"{name}: strides {array.strides} may put two elements in one place")


def check_apart(
    out: Array,
    name: str,
    device: Device,
    others: dict[str, Array | None],
    may_be: Collection[str] = (),
) -> None:
    """Raise ValueError where `out` shares memory with one of `others` ({argument's name: array or None}).

    Those that `may_be` names may be `out` itself: the same elements at the same places.
    """
    for other_name, other in others.items():
        if other is None or other is out or not (out.size and other.size):
            if other is out and other_name not in may_be:
                raise ValueError(f"{name}: is {other_name}; give it memory of its own")
            continue
        if not device.overlap(out, other):
            continue
        same = device.address(out) == device.address(other) and out.dtype == other.dtype
        if not (same and out.strides == other.strides and other_name in may_be):
            raise ValueError(f"{name}: shares memory with {other_name}; give it memory of its own")


def check_result(
    out: Any,
    name: str,
    device: Device,
    dtypes: tuple,
    shape: tuple,
    others: dict[str, Array | None],
    may_be: Collection[str] = (),
) -> Rows:
    """`out` as `Rows` that can be written and share nothing with `others`: see `check_apart`."""
    rows = rows_of(out, name, device, dtypes, shape)
    check_writable(out, name, device)
    check_apart(out, name, device, others, may_be)
    return rows


def check_vector(array: Any, name: str, device: Device, dtypes: tuple, length: int) -> None:
    """Raise unless `array` is (length,), of one of `dtypes`, aligned; any stride."""
    check_array(array, name, device, dtypes)
    if tuple(array.shape) != (length,):
        raise ValueError(f"{name}: expected shape ({length},), got {tuple(array.shape)}")
    check_alignment(array, name, device)


def check_weights(array: Any, name: str, device: Device, length: int) -> None:
    """Raise unless `array` is None or a contiguous float32 array (length,)."""
    if array is None:
        return
    check_vector(array, name, device, ("float32",), length)
    if length > 1 and array.strides[0] != 4:
        raise ValueError(f"{name}: must be contiguous; its stride is {array.strides[0]} bytes")


def real_number(value: Any, name: str, least: float = -math.inf) -> float:
    """`value` as a float.

    Raises
    ------
    TypeError, ValueError
        No number; not finite, or below `least`.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    value = float(value)
    if not math.isfinite(value) or value < least:
        at_least = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name}: expected a finite number{at_least}, got {value!r}")
    return value


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")
    return value


def flag(value: Any, name: str) -> bool:
    """`value` as a bool; TypeError for what is none."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)
