"""Launches with arguments packed at one go: the driver's own call, without CuPy's look at each argument.

`KernelDevice.launch` checks every argument and says what is wrong with it, some microseconds each. Nearly all launches
have nothing wrong: these are packed here, and whatever is unusual in any way is left to that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowlevel.shapes import dtype_name

from ..gpu.tensor_map import TensorMap

_MAP_BYTES, _PLACE = 128, 64  # of a tensor map; arguments start at multiples
_CODES = {"i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f4": "f"}
_16_BITS = ("float16", "bfloat16")


class PackedLaunch:
    """One kernel on one GPU.

    Parameters
    ----------
    parameters : sequence of kernel_device._Parameter
    ndarray : type
        Of the arrays that are taken, CuPy's: others, subclasses too, are unusual.
    device_id : int
        Of the GPU that they must lie on.
    encode : callable
        The bytes of a `TensorMap`.
    """

    def __init__(
        self,
        parameters: Sequence[Any],
        ndarray: type,
        device_id: int,
        encode: Callable[[TensorMap], np.ndarray],
    ) -> None:
        self._ndarray, self._device_id, self._encode = ndarray, device_id, encode
        self._parameters = tuple((self._kind(each), each.dtype) for each in parameters)
        self._offsets, fields, at = [], [], 0
        for kind, dtype in self._parameters:
            n_bytes, code = _field(kind, dtype)
            self._offsets.append(at)
            padding = -n_bytes % _PLACE
            fields.append(f"{code}{padding}x")
            at += n_bytes + padding
        self._pack_into = struct.Struct("=" + "".join(fields)).pack_into
        self._n_bytes = at
        self._free: list = []  # a launch has one to itself: another thread may pack at the same time

    @staticmethod
    def _kind(parameter):
        if parameter.is_map:
            return "map"
        if parameter.is_array:
            return "array"
        return {"V": "structure", "f": "float"}.get(parameter.dtype.kind, "int")

    def __call__(self, arguments: Sequence[Any], launch: Callable[[int], None]) -> bool:
        """``launch(address of the addresses of the arguments)``; False: some argument is unusual, and nothing was done."""
        values = []
        if len(arguments) != len(self._parameters):
            return False
        for (kind, dtype), argument in zip(self._parameters, arguments, strict=True):
            if kind == "array":
                value = 0 if argument is None else self._pointer(dtype, argument)
            elif kind == "structure":
                value = _bytes_of(argument, dtype.itemsize)
            elif kind == "map":
                value = self._map(argument)
            else:
                usual = type(argument) is int or (kind == "float" and type(argument) is float)
                value = argument if usual else None
            if value is None:
                return False
            values.append(value)
        try:
            place = self._free.pop()
        except IndexError:
            place = _Place(self._n_bytes, self._offsets)
        try:
            self._pack_into(place.memory, 0, *values)
        except (struct.error, OverflowError):  # a number that its type does not hold
            return False
        launch(place.start)
        self._free.append(place)
        return True

    def _pointer(self, dtype, argument):
        if type(argument) is not self._ndarray:
            return None
        data = argument.data
        if data.device_id != self._device_id:
            return None
        if dtype is None or argument.dtype == dtype:
            return data.ptr
        return data.ptr if dtype == np.uint16 and dtype_name(argument.dtype) in _16_BITS else None

    def _map(self, argument):
        if type(argument) is not TensorMap or self._pointer(None, argument.array) is None:
            return None
        return self._encode(argument).tobytes()


class _Place:
    """Memory of one launch's arguments, and the addresses of each."""

    def __init__(self, n_bytes, offsets):
        memory = np.zeros(n_bytes + _PLACE, np.uint8)
        first = -memory.ctypes.data % _PLACE
        self.memory = memory[first : first + n_bytes]
        self.addresses = np.array([self.memory.ctypes.data + at for at in offsets], np.uintp)
        self.start = self.addresses.ctypes.data


def _field(kind, dtype):
    """(bytes, format) of an argument."""
    if kind == "map":
        return _MAP_BYTES, f"{_MAP_BYTES}s"
    if kind == "array":
        return 8, "Q"
    if kind == "structure":
        return dtype.itemsize, f"{dtype.itemsize}s"
    return dtype.itemsize, _CODES[dtype.str[1:]]


def _bytes_of(argument, n_bytes):
    usual = type(argument) is np.ndarray and argument.ndim == 0 and argument.nbytes == n_bytes
    return argument.tobytes() if usual else None
