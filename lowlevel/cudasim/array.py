"""Arrays of the simulated device."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from . import streams
from .protocol import POISON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike


_ALIGNMENT = 256  # what CUDA's allocators give


class CudaSimArray(np.ndarray):
    """A NumPy array that stands for device memory.

    Calls that dispatch by array type (``lowlevel.attention`` and its kin) run on the simulator when
    they get one. Otherwise it behaves as an ndarray; views and results of NumPy functions are
    CudaSimArrays too.

    Attributes
    ----------
    index : int
        Of the simulated device whose memory it is.
    """

    index = 0

    def __array_finalize__(self, source):
        index = getattr(source, "index", 0)
        if index:
            self.index = index

    @property
    def device(self) -> str:  # type: ignore[override]  # of the host, where it lies
        """The device's name, "cudasim" or "cudasim:1"."""
        return name_of(self.index)


def name_of(index: int) -> str:
    """What a simulated device is called: the first one "cudasim"."""
    return f"cudasim:{index}" if index else "cudasim"


def empty(shape: int | Sequence[int], dtype: DTypeLike = "float32", index: int = 0) -> CudaSimArray:
    """An array whose bytes are poison: NaN as any float type, and unwritten to race mode.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : data type
    index : int
        Of the simulated device.
    """
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array = memory[start : start + n_bytes].view(dtype).reshape(shape).view(CudaSimArray)
    array.index = index
    streams.forget(array.ctypes.data, n_bytes)
    poison(array)
    return array


def asarray(values: ArrayLike, dtype: DTypeLike | None = None) -> CudaSimArray:
    """A copy of `values` as a CudaSimArray; one that is a CudaSimArray already stays itself."""
    if isinstance(values, CudaSimArray) and dtype in (None, values.dtype):
        return values
    values = np.asarray(values, dtype)
    array = empty(values.shape, values.dtype)
    array[...] = values
    return array


def asnumpy(array: np.ndarray) -> np.ndarray:
    """A plain NumPy copy of `array`."""
    return np.array(array, subok=False)


def poison(array: np.ndarray) -> None:
    """Fill `array`, whose memory must be contiguous, with the pattern that marks unwritten bytes."""
    if not array.flags.c_contiguous:
        raise ValueError("poison: give a C-contiguous array; this one has gaps")
    raw_bytes(array.ctypes.data, array.nbytes)[:] = poison_bytes(array.ctypes.data, array.nbytes)


def raw_bytes(address: int, n_bytes: int) -> np.ndarray:
    """The process's memory at `address` as a uint8 array, not kept alive."""
    memory: Any = (ctypes.c_ubyte * n_bytes).from_address(address)
    return np.frombuffer(memory, np.uint8)


def poison_bytes(address: int, n_bytes: int, word: int = POISON) -> np.ndarray:
    """What poison, or another word at multiples of four, looks like at `address`."""
    phase = address % 4
    words = np.full((phase + n_bytes + 3) // 4, word, np.uint32)
    return words.view(np.uint8)[phase : phase + n_bytes]
