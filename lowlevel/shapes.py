"""Shapes and dtypes as callers give them, checked."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
# NumPy's, CuPy's or the simulator's: whichever the device has. CuPy brings no types that could be named here.
Array: TypeAlias = Any

MAX_NDIM = 32  # what NumPy 1 holds; NumPy 2 holds 64
_SHORT_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def array_layout(shape: Shape, dtype: DTypeLike) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and bytes of an array with elements of fixed size.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : dtype or str
        Any NumPy dtype without Python objects; those of ml_dtypes by name.

    Returns
    -------
    shape : tuple of int
    dtype : numpy.dtype
    n_bytes : int
        Exact, of any size.

    Raises
    ------
    TypeError, ValueError
    """
    dtype = resolve_dtype(dtype)
    lengths: tuple[int, ...]
    if type(shape) is int:
        lengths = (shape,)
    else:
        try:
            lengths = tuple(map(operator.index, shape))  # type: ignore[arg-type]  # or TypeError
        except TypeError:
            lengths = (_one_length(shape),)
    if lengths and min(lengths) < 0:
        raise ValueError(f"shape: expected lengths of at least 0, got {lengths}")
    if len(lengths) > MAX_NDIM:
        raise ValueError(f"shape: expected at most {MAX_NDIM} axes, got {len(lengths)}")
    return lengths, dtype, math.prod(lengths) * dtype.itemsize


def resolve_dtype(dtype: DTypeLike) -> np.dtype:
    """`dtype` as a numpy.dtype whose elements are plain bytes of one fixed size."""
    if dtype is None:
        raise TypeError('dtype: expected a dtype or its name, such as "float32"; got None')
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        dtype = _extension_dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"dtype: expected one without Python objects, got {dtype}")
    if dtype.itemsize == 0 or dtype.subdtype:
        raise TypeError(f"dtype: expected one element of fixed size, got {dtype!r}")
    return dtype


def _one_length(shape):
    try:
        return operator.index(shape)
    except TypeError:
        raise TypeError(f"shape: expected an int or a sequence of ints, got {shape!r}") from None


def _extension_dtype(name):
    """bfloat16 and its like have names that NumPy knows only once ml_dtypes is imported."""
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    except ImportError:
        if name == "bfloat16":
            raise ImportError(
                "dtype: bfloat16 needs the package ml_dtypes, which is not installed "
                "(pip install ml_dtypes)"
            ) from None
        raise TypeError(f"dtype: expected a NumPy dtype or its name, got {name!r}") from None
    except (AttributeError, TypeError):
        raise TypeError(f"dtype: expected a NumPy dtype or its name, got {name!r}") from None


def dtype_name(dtype: object, argument: str = "dtype") -> str:
    """The name of a dense dtype or quantised type: "float32", "bfloat16", "Q8_0"."""
    if isinstance(dtype, str):
        return _SHORT_NAMES.get(dtype, dtype)
    try:
        name = _name_of(dtype)
    except TypeError:  # one that cannot be looked up
        name = _name_of.__wrapped__(dtype)
    if name is None:
        raise TypeError(f'{argument}: expected a dtype or a name such as "float32", got {dtype!r}')
    return name


@functools.lru_cache(maxsize=64)  # NumPy puts a dtype's name together each time it is asked
def _name_of(dtype):
    return getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
