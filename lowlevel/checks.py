"""What calls check of their arguments, with one rule for what they raise.

TypeError
    A wrong kind: no array, no number, no pool; an array, a pool of another device; an array of a dtype that
    the call has no use for there.
ValueError
    The right kind, a wrong value: a shape, strides, a range, a name that stands for nothing, memory that is
    shared, a plan for other sizes. (IndexError: an index into an axis that is too short.)
BudgetError
    Memory: of pools and plans alone.

Messages begin with the argument's name, say what was given and what would work. Nothing has been written by then.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import devices
from .pool import Pool
from .shapes import dtype_name

if TYPE_CHECKING:
    from .arrays import Array
    from .devices import Device

FLOATS: tuple[str, ...] = ("float32", "float16", "bfloat16")
# The least float32 whose reciprocal is one.
LEAST_POSITIVE = float(np.finfo(np.float32).tiny)
# What rounds to infinity: for float32 its largest number and half a step.
_TOO_LARGE = {"float32": (2 - 2.0**-24) * 2.0**127, "float64": math.inf}


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


# ---------------------------------------------------------------- kinds


def check_device(array: Any, name: str, device: Device, first: str = "the first argument") -> None:
    """Raise TypeError unless `array`, the argument `name`, is one on `device`, where the argument `first` lies."""
    there = devices.of_array(array, name)
    if there is not device:
        raise TypeError(
            f"{name}: lies on {there.name}, {first} on {device.name}; lowlevel.asarray (of a QuantTensor: "
            f"to) brings either to the other's device"
        )


def check_dtype(array: Array, name: str, device: Device, dtypes: tuple[str, ...]) -> None:
    """Raise TypeError unless `array` has one of `dtypes`, in the machine's order of bytes."""
    if dtype_name(array.dtype) not in dtypes or not array.dtype.isnative:
        wanted = " or ".join(dtypes)
        raise TypeError(
            f"{name}: expected {wanted} on {device.name}, got {array.dtype}; "
            f"{name}.astype({dtypes[0]!r}) would do"
        )


def check_array(
    array: Any,
    name: str,
    device: Device,
    dtypes: tuple[str, ...],
    first: str = "the first argument",
) -> None:
    """`check_device` and `check_dtype`."""
    check_device(array, name, device, first)
    check_dtype(array, name, device, dtypes)


def check_pool(pool: Any, device: Device) -> None:
    """Raise unless `pool` is None or an open `Pool` on `device`.

    Raises
    ------
    TypeError
        No pool, or one of another device.
    ValueError
        It is closed.
    """
    if pool is None:
        return
    if not isinstance(pool, Pool):
        raise TypeError(f"pool: expected a lowlevel.Pool or None, got {type(pool).__name__}")
    if pool.device != device.name:
        raise TypeError(
            f"pool: expected one on {device.name}, as the arrays are; got one on {pool.device}"
        )
    if pool.closed:
        raise ValueError("pool: it is closed")


def flag(value: Any, name: str) -> bool:
    """`value` as a bool; TypeError for what is none."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


# ---------------------------------------------------------------- values


def choice(value: Any, name: str, known: Collection[str]) -> str:
    """`value` if it is one of the names `known`.

    Raises
    ------
    TypeError, ValueError
        No str; another one.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {_one_of(known)}, got {value!r}")
    if value not in known:
        raise ValueError(f"{name}: expected {_one_of(known)}, got {value!r}")
    return value


def _one_of(names):
    return " or ".join(f'"{name}"' for name in names)


def real_number(value: Any, name: str, least: float | None = None, dtype: str = "float32") -> float:
    """`value` as a float that is finite in `dtype`, which is computed with.

    Raises
    ------
    TypeError
        No real number.
    ValueError
        Not finite there, or below `least`.
    """
    if isinstance(value, np.floating):
        value = float(value)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if is_number and -_TOO_LARGE[dtype] < value < _TOO_LARGE[dtype]:
        number = float(value)
        if least is None or number >= least:
            return number
    at_least = "" if least is None else f", at least {least:.2g}"
    kind = ValueError if is_number else TypeError
    raise kind(f"{name}: expected a number that is finite in {dtype}{at_least}, got {value!r}")


def whole_number(value: Any, name: str, low: int, high: int | None = None) -> int:
    """`value` as an int from `low` to `high` (None: of any size).

    Raises
    ------
    TypeError, ValueError
        No int, or one out of that range.
    """
    if type(value) is not int:  # as most are
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: expected an int{_within(low, high)}, got {value!r}")
        value = int(value)
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected an int{_within(low, high)}, got {value}")
    return value


def _within(low, high):
    return f" >= {low}" if high is None else f", {low} to {high}"


# ---------------------------------------------------------------- memory of arrays


def check_shape(array: Array, name: str, shape: tuple[int, ...], what: str = "") -> None:
    """Raise ValueError unless `array` has that shape; `what`: what it is made of, for the message."""
    if tuple(array.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}{what}, got {tuple(array.shape)}")


def check_alignment(array: Array, name: str, device: Device) -> None:
    """Raise ValueError unless every item of `array` stands at a multiple of its size."""
    # NumPy knows of its own arrays: start and strides against the dtype's alignment, which is its size here.
    if not array.size or getattr(array.flags, "aligned", False):
        return
    item = array.itemsize
    start = device.address(array) % item
    if start or any(s % item for n, s in zip(array.shape, array.strides, strict=True) if n > 1):
        raise ValueError(
            f"{name}: the array is not aligned to its {item}-byte items: strides {array.strides} and a "
            f"start {start} bytes off; a copy would be"
        )


def check_last_axis(array: Array, name: str) -> None:
    """Raise ValueError unless items along the last axis lie side by side."""
    if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        raise ValueError(
            f"{name}: the last axis must be contiguous; its stride is {array.strides[-1]} bytes, not "
            f"{array.itemsize}, for shape {tuple(array.shape)}; numpy.ascontiguousarray({name}) would do"
        )


def check_writable(array: Array, name: str, device: Device) -> None:
    """Raise ValueError unless `array` can be written, every element at a place of its own."""
    if not device.writable(array):
        raise ValueError(f"{name}: the array is read-only; give one that can be written")
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
        if other is None or not (out.size and other.size):
            continue
        if other is not out:
            if not device.overlap(out, other):
                continue
            same = device.address(out) == device.address(other) and out.dtype == other.dtype
            if same and out.strides == other.strides and other_name in may_be:
                continue
        elif other_name in may_be:
            continue
        raise ValueError(f"{name}: shares memory with {other_name}; give it memory of its own")


# ---------------------------------------------------------------- operands


def rows_of(
    array: Any,
    name: str,
    device: Device,
    dtypes: tuple[str, ...],
    shape: tuple[int, ...] | None = None,
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
    if shape is not None:
        check_shape(array, name, shape)
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected rows, (n_tokens, n) or (planes, n_tokens, n); got shape {tuple(array.shape)}"
        )
    check_alignment(array, name, device)
    check_last_axis(array, name)
    if array.ndim == 2:
        return Rows(array, (1, *array.shape), 0, array.strides[0])
    return Rows(array, tuple(array.shape), array.strides[0], array.strides[1])


def check_result(
    out: Any,
    name: str,
    device: Device,
    dtypes: tuple[str, ...],
    shape: tuple[int, ...],
    others: dict[str, Array | None],
    may_be: Collection[str] = (),
) -> Rows:
    """`out` as `Rows` that can be written and share nothing with `others`: see `check_apart`."""
    rows = rows_of(out, name, device, dtypes, shape)
    check_writable(out, name, device)
    check_apart(out, name, device, others, may_be)
    return rows


def check_vector(
    array: Any, name: str, device: Device, dtypes: tuple[str, ...], length: int
) -> None:
    """Raise unless `array` is (length,), of one of `dtypes`, aligned; any stride."""
    check_array(array, name, device, dtypes)
    check_shape(array, name, (length,))
    check_alignment(array, name, device)


def check_weights(
    array: Any, name: str, device: Device, length: int, dtypes: tuple[str, ...] = ("float32",)
) -> None:
    """Raise unless `array` is None or a contiguous array (length,)."""
    if array is None:
        return
    check_vector(array, name, device, dtypes, length)
    check_last_axis(array, name)
