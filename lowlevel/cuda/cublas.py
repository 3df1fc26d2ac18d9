"""Matrix products by cuBLAS, with no workspace but the caller's.

CuPy's handle of this thread is used. cuBLAS takes its own workspace up again whenever the handle is
given a stream, as CuPy does each time it hands the handle out.
"""

import contextlib
import ctypes
import functools

import numpy as np

from . import cupy_api

# cudaDataType, cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t
_FLOAT32, _COMPUTE_32F, _COMPUTE_TF32, _DEFAULT_ALGORITHM = 0, 68, 77, -1
_AS_IT_IS, _TRANSPOSED = 0, 1
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


@contextlib.contextmanager
def product(workspace):
    """Context that yields ``product``, see kernel_device.py; for CuPy's current GPU and stream."""
    cupy = cupy_api.load()
    from cupy.cuda import cublas

    handle = cupy.cuda.device.get_cublas_handle()
    status = _set_workspace(handle, workspace.data.ptr, workspace.nbytes)
    if status:
        raise RuntimeError(f"cublasSetWorkspace: status {status} for {workspace.nbytes} bytes")
    try:
        yield functools.partial(_product, cublas, handle)
    finally:
        cublas.setStream(handle, cupy.cuda.get_current_stream().ptr)


def _product(cublas, handle, a, b, c, transposed=False, accumulate=False, may_round=False):
    batch, m, n = c.shape
    # cuBLAS counts down columns: what it sees are the transposes, and c' = b' a'.
    cublas.gemmStridedBatchedEx(
        handle, _TRANSPOSED if transposed else _AS_IT_IS, _AS_IT_IS, n, m, a.shape[2],
        _ONE.ctypes.data, *_operand(b), *_operand(a), (_ONE if accumulate else _ZERO).ctypes.data,
        *_operand(c), batch, _COMPUTE_TF32 if may_round else _COMPUTE_32F, _DEFAULT_ALGORITHM,
    )  # fmt: skip


def _operand(array):
    """Address, type, stride of rows and of the batch."""
    batch, row = (stride // array.itemsize for stride in array.strides[:2])
    return array.data.ptr, _FLOAT32, max(row, array.shape[2]), batch


def _set_workspace(handle, address, n_bytes):
    function = _library().cublasSetWorkspace_v2
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    return function(handle, address, n_bytes)


@functools.cache
def _library():
    """The libcublas that CuPy has loaded."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libcublas.so" in line}
    return ctypes.CDLL(min(paths))
