"""Bringing arrays to a device and back, and what hints call an array of any device."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import devices
from .shapes import Array

__all__ = ["Array", "asarray", "asnumpy"]


def asarray(x: Any, device: str, name: str = "x") -> Array:
    """`x` as an array on a device.

    Parameters
    ----------
    x : array, or anything that NumPy makes one of
        On any device.
    device : str
        "cpu", "cuda:N" or "cudasim:N".
    name : str
        What errors call `x`.

    Returns
    -------
    array
        `x` itself if it lies there already; otherwise a C-contiguous copy of shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        Not a device, or a dtype that its arrays cannot have.
    """
    target = devices.get(device)
    source = _device_of(x, name)
    if source is target:
        return x
    return target.from_host(np.asarray(x) if source is None else source.to_host(x))


def asnumpy(x: Any, name: str = "x") -> np.ndarray:
    """`x` in the host's memory, once all earlier work on its device is done.

    A NumPy array is returned as it is, any other is copied. Errors call it `name`.
    """
    source = _device_of(x, name)
    return np.asarray(x) if source is None else source.to_host(x)


def _device_of(x, name):
    try:
        return devices.of_array(x, name)
    except TypeError:
        if isinstance(x, np.ndarray):  # a masked array: its mask would be lost
            raise
        return None
