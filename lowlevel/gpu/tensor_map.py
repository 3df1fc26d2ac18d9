"""How the copy engine of Hopper and later is told of an array: bulk.cuh's TensorMap.

A map describes a 16-bit array (heads, rows, columns) of which boxes are copied: 64 columns of some rows of one
head. The driver makes its 128 bytes; the simulator has its own (`lowlevel.cudasim.TensorMap`).
"""

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

COLUMNS = 64  # of a box: a swizzled line of 128 bytes
_ALIGNMENT = 16  # bytes: of the first element, and of strides
_MOST_LENGTH, _MOST_STRIDE = 2**32, 2**40
_MOST_ROWS = 256  # of a box
# Of cuda.h: CUtensorMapDataType and so on.
_UINT16, _NOT_INTERLEAVED, _SWIZZLE_128, _PROMOTE_256, _ZEROS_OUTSIDE = 1, 0, 3, 3, 0


class TensorMap(NamedTuple):
    """An argument for a parameter of code "map".

    Attributes
    ----------
    array : array of a device, (heads, rows, columns)
        Of 16-bit elements; see `describable`.
    rows : int
        Of a box.
    """

    array: Any
    rows: int


def describable(address: int, shape: tuple, strides: tuple) -> bool:
    """Whether an array of 16-bit elements at an address can be described: rows of aligned starts, that do not
    overlap and go forwards."""
    n_heads, n_rows, n_columns = shape
    head_stride, row_stride, column_stride = strides
    if 0 in shape or max(shape) >= _MOST_LENGTH or (column_stride != 2 and n_columns > 1):
        return False
    steps = [stride for stride, n in ((head_stride, n_heads), (row_stride, n_rows)) if n > 1]
    return address % _ALIGNMENT == 0 and all(
        stride % _ALIGNMENT == 0 and 0 < stride < _MOST_STRIDE for stride in steps
    )


def whole_strides(shape: tuple, strides: tuple) -> tuple[int, int]:
    """(of rows, of heads) in bytes, with such as a map may have where an axis has one element."""
    row = strides[1] if shape[1] > 1 else -(-2 * shape[2] // _ALIGNMENT) * _ALIGNMENT
    return row, strides[0] if shape[0] > 1 else row * shape[1]


@functools.lru_cache(maxsize=256)  # a call of the driver takes some microseconds
def encode(address: int, shape: tuple, strides: tuple, rows: int) -> np.ndarray:
    """The driver's description of an array in a GPU's memory.

    Returns
    -------
    0-d ndarray of 128 bytes

    Raises
    ------
    RuntimeError
        The driver refuses.
    """
    row_stride, head_stride = whole_strides(shape, strides)
    memory = np.zeros(128 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + 128]
    error = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(result.ctypes.data), _UINT16, 3, ctypes.c_void_p(address),
        (ctypes.c_uint64 * 3)(*shape[::-1]), (ctypes.c_uint64 * 2)(row_stride, head_stride),
        (ctypes.c_uint32 * 3)(COLUMNS, rows, 1), (ctypes.c_uint32 * 3)(1, 1, 1),
        _NOT_INTERLEAVED, _SWIZZLE_128, _PROMOTE_256, _ZEROS_OUTSIDE,
    )  # fmt: skip
    if error:
        raise RuntimeError(
            f"the driver (error {error}) does not describe an array of {shape} with strides {strides} at {address:#x}"
        )
    return result.view("V128")[0:1].reshape(())


@functools.cache
def _driver():
    return ctypes.CDLL("libcuda.so.1")
