"""Matrix products by cuBLASLt, with no memory but the caller's workspace.

Not cuBLAS proper: each of its handles takes a workspace of its own when it is made (64 MiB on an H100) and
keeps it beside the one that it is given. cuBLASLt's handles have none.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from typing import TYPE_CHECKING, Any

from lowlevel.shapes import dtype_name

from . import cupy_api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowlevel.shapes import Array


# cudaDataType, cublasComputeType_t, cublasOperation_t
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_FLOAT32, _COMPUTE_32F, _COMPUTE_TF32 = 0, 68, 77
_AS_IT_IS, _TRANSPOSED = 0, 1
# cublasLtMatmulDescAttributes_t, cublasLtMatrixLayoutAttribute_t, cublasLtMatmulPreferenceAttributes_t
_TRANS_A, _BATCH_COUNT, _BATCH_STRIDE, _MOST_WORKSPACE, _ALIGNMENT_OF_A = 3, 5, 6, 1, 5
_REDUCTIONS, _NO_REDUCTION = 3, 0
_MOST_ALIGNMENT = 256
_NAMES = "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@contextlib.contextmanager
def product(workspace: Array) -> Iterator[Any]:
    """Context that yields ``product``, see launch_device.py; for CuPy's current GPU and stream."""
    cupy = cupy_api.load()
    index = cupy.cuda.runtime.getDevice()
    stream = cupy.cuda.get_current_stream().ptr
    yield functools.partial(_product, index, stream, workspace.data.ptr, workspace.nbytes)


def _product(
    index, stream, workspace, n_bytes, a, b, c, transposed=False, accumulate=False, may_round=False
):
    # cuBLAS counts down columns: what it sees are the transposes, and c' = b' a'.
    addresses = b.data.ptr, a.data.ptr, c.data.ptr
    alignments = tuple([min(address & -address, _MOST_ALIGNMENT) for address in addresses])
    a_strides = a.strides if len(a) == len(c) else (0, *a.strides[1:])
    strides = b.strides, a_strides, c.strides
    dtype = dtype_name(c.dtype)
    plan = _plan(
        index, c.shape, a.shape[2], strides, alignments, transposed, may_round, n_bytes, dtype
    )
    plan.run(addresses, accumulate, workspace, n_bytes, stream)


class _Plan:
    """A product's descriptions, and the algorithm that cuBLASLt recommends for it.

    `strides`, in bytes, and `alignments` are those of b, a and c, `shape` c's, `k` the length of a's rows.
    """

    def __init__(
        self, handle, shape, k, strides, alignments, transposed, may_round, n_bytes, dtype
    ):
        batch, m, n = shape
        kind, item = _TYPES[dtype], 4 if dtype == "float32" else 2
        self._handle, self._made = handle, []
        compute = _COMPUTE_TF32 if may_round and dtype == "float32" else _COMPUTE_32F
        self._description = self._make("MatmulDesc", compute, _FLOAT32)
        self._set("MatmulDesc", self._description, _TRANS_A, ctypes.c_int32(int(transposed)))
        sizes = (k, n) if transposed else (n, k), (k, m), (n, m)
        self._layouts = []
        for (rows, columns), of_array in zip(sizes, strides, strict=True):
            batch_stride, row_stride = (stride // item for stride in of_array[:2])
            leading = max(row_stride, rows)  # where there is one column the stride may be anything
            layout = self._make("MatrixLayout", kind, rows, columns, leading)
            self._set("MatrixLayout", layout, _BATCH_COUNT, ctypes.c_int32(batch))
            self._set("MatrixLayout", layout, _BATCH_STRIDE, ctypes.c_int64(batch_stride))
            self._layouts.append(layout)
        preference = self._make("MatmulPreference")
        most = ctypes.c_uint64(n_bytes)
        self._set("MatmulPreference", preference, _MOST_WORKSPACE, most)
        # Sums in parts, by how many rows there are, would be rounded otherwise.
        if dtype != "float32":
            none = ctypes.c_uint32(_NO_REDUCTION)
            self._set("MatmulPreference", preference, _REDUCTIONS, none)
        for i, alignment in enumerate((*alignments, alignments[-1])):  # A, B, C, D
            at = ctypes.c_uint32(alignment)
            self._set("MatmulPreference", preference, _ALIGNMENT_OF_A + i, at)
        self._best, found = _Heuristic(), ctypes.c_int()
        _call(
            "cublasLtMatmulAlgoGetHeuristic", handle, self._description,
            *self._layouts, self._layouts[2], preference, ctypes.c_int(1),
            ctypes.byref(self._best), ctypes.byref(found),
        )  # fmt: skip
        if found.value != 1 or self._best.state:
            raise RuntimeError(
                f"cuBLASLt knows no product of {(batch, m, k)} and {(batch, k, n)} in {n_bytes} "
                f"bytes of workspace"
            )

    def _make(self, kind, *arguments):
        """A new object; sizes are 64-bit, types and kinds int."""
        made = ctypes.c_void_p()
        if kind == "MatrixLayout":
            kinds = ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64
        else:
            kinds = ctypes.c_int, ctypes.c_int
        values = (of(value) for of, value in zip(kinds, arguments, strict=False))
        _call(f"cublasLt{kind}Create", ctypes.byref(made), *values)
        self._made.append((getattr(_library(), f"cublasLt{kind}Destroy"), made))
        return made

    @staticmethod
    def _set(kind, made, attribute, value):
        size = ctypes.c_size_t(ctypes.sizeof(value))
        where = f"cublasLt{kind}SetAttribute"
        _call(where, made, ctypes.c_int(attribute), ctypes.byref(value), size)

    def run(self, addresses, accumulate, workspace, n_bytes, stream):
        b, a, c = addresses
        of_b, of_a, of_c = self._layouts
        status = _matmul()(
            self._handle, self._description, _ONE, b, of_b, a, of_a, _ONE if accumulate else _ZERO,
            c, of_c, c, of_c, self._best, workspace, n_bytes, stream,
        )  # fmt: skip
        _check("cublasLtMatmul", status)

    def __del__(self):
        for destroy, made in self._made:  # also when the interpreter ends, and this module is gone
            destroy(made)


@functools.lru_cache(maxsize=256)
def _plan(index, *product):
    return _Plan(_handle(index), *product)


@functools.cache
def _handle(index):
    """GPU `index`'s, which any number of threads may use; it is the current one."""
    made = ctypes.c_void_p()
    _call("cublasLtCreate", ctypes.byref(made))
    return made


def _call(name, *arguments):
    _check(name, getattr(_library(), name)(*arguments))


def _check(name, status):
    if status:
        raise RuntimeError(f"{name}: status {status}")


@functools.cache
def _matmul():
    """cublasLtMatmul with its types declared, so that numbers need not be wrapped in each call."""
    function = _library().cublasLtMatmul
    pointer, number = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
    function.argtypes = [
        pointer, pointer, number, pointer, pointer, pointer, pointer, number,
        pointer, pointer, pointer, pointer, ctypes.POINTER(_Heuristic), pointer, ctypes.c_size_t,
        pointer,
    ]  # fmt: skip
    return function


@functools.cache
def _library():
    """The libcublasLt that belongs to CuPy's libcublas."""
    with contextlib.suppress(ImportError):
        from cuda import pathfinder  # finds NVIDIA's wheels and toolkits, as CuPy does

        with contextlib.suppress(pathfinder.DynamicLibNotFoundError):
            return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    with open("/proc/self/maps") as maps:
        loaded = {line.split()[-1] for line in maps if re.search(r"libcublasLt\.so", line)}
    for name in (*sorted(loaded), *_NAMES):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise ImportError(
        "cuBLASLt: no libcublasLt.so here; it comes with a CUDA toolkit or nvidia-cublas"
    )
