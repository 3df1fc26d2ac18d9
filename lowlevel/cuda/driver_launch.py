"""The driver's launch that brings a kernel's blocks as soon as those of the kernel ahead have gone, while what these wrote is
still on its way: what every kernel of ours begins with (`await_earlier_kernels` in ptx.cuh) has them wait for it.

CuPy has no name for it (cuLaunchKernelEx with CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from . import cupy_api

_PROGRAMMATIC_STREAM_SERIALIZATION = 6
# The first GPUs that have it, and the first driver that keeps it in a graph.
_CAPABILITY, _DRIVER = (9, 0), 12030


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("n_attributes", ctypes.c_uint),
    )


_EARLY = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1, b"")


def launcher(index: int) -> Callable[[int, int, int, int, int, int], Any]:
    """``launch(function, n_blocks, n_threads, shared_bytes, stream, arguments)`` for GPU `index`.

    `function` and `stream` are the driver's handles, `arguments` the address of the addresses of the kernel's arguments.
    """
    cupy = cupy_api.load()
    is_new = cupy.cuda.runtime.driverGetVersion() >= _DRIVER
    if is_new and cupy_api.compute_capability(index) >= _CAPABILITY:
        return _launch_early
    plain = cupy.cuda.driver.launchKernel

    def launch(function, n_blocks, n_threads, shared_bytes, stream, arguments):
        plain(function, n_blocks, 1, 1, n_threads, 1, 1, shared_bytes, stream, arguments, 0)

    return launch


def _launch_early(function, n_blocks, n_threads, shared_bytes, stream, arguments):
    config = _Config(
        (n_blocks, 1, 1), (n_threads, 1, 1), shared_bytes, stream, ctypes.pointer(_EARLY), 1
    )
    status = _driver_call()(ctypes.byref(config), function, arguments, None)
    if status:
        raise cupy_api.load().cuda.driver.CUDADriverError(status)


@functools.cache
def _driver_call():
    """cuLaunchKernelEx."""
    call = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    call.argtypes = [ctypes.c_void_p] * 4
    call.restype = ctypes.c_int
    return call
