"""Dequantisation: blocks to float32 or float16."""

import math

import numpy as np

from .tensor import QuantTensor

DTYPES = ("float32", "float16")


def dequantize(t, dtype=None, out=None, n_threads=None):
    """Decode a tensor's blocks.

    Equal to the gguf package's ``gguf.quants.dequantize``, bit for bit in float32 (NaN for NaN),
    for any bytes whatever.

    Parameters
    ----------
    t : QuantTensor, (..., rows, columns)
        Of any format, strided or read-only too.
    dtype : {"float32", "float16"}, optional
        float16 is the float32 value rounded to nearest even. Default: that of `out`, else float32.
    out : numpy.ndarray, optional
        Shape of `t`, writeable, last axis contiguous. Reusing one is much faster than a fresh
        array, whose pages the operating system has to provide first.
    n_threads : int, optional
        Default: all CPUs of this process. 1 uses the calling thread alone.

    Returns
    -------
    numpy.ndarray
        `out`, or a fresh C-contiguous array.

    Raises
    ------
    TypeError, ValueError
        Not a QuantTensor; a dtype, `out` or `n_threads` that does not fit. Nothing is written.
    """
    if not isinstance(t, QuantTensor):
        raise TypeError(f"t: expected a QuantTensor, got {type(t).__name__}")
    dtype = _checked_dtype(dtype, out)
    if out is not None:
        _check_out(out, t, dtype)
    from lowlevel.cpu.threads import resolve_n_threads

    n_threads = resolve_n_threads(n_threads)
    if out is None:
        out = _empty_aligned(t.shape, dtype)
    if t.size:
        from .cpu.dequantize import dequantize as run  # compiles kernels: only when one is needed

        run(t, out, n_threads)
    return out


def _empty_aligned(shape, dtype):
    """An array on a cache line's boundary, which NumPy's own large arrays miss by 16 bytes."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(n_bytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _checked_dtype(dtype, out):
    if dtype is None:
        dtype = getattr(out, "dtype", "float32")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    return np.dtype(name)


def _check_out(out, t, dtype):
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected {dtype} as dtype says, got {out.dtype}")
    if out.shape != t.shape:
        raise ValueError(f"out: expected shape {t.shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: the array is read-only")
    if not out.flags.aligned:
        raise ValueError(f"out: the array is not aligned to its {out.itemsize}-byte items")
    strides = [stride for size, stride in zip(out.shape, out.strides, strict=True) if size > 1]
    if out.size and out.shape[-1] > 1 and strides[-1] != out.itemsize:
        raise ValueError(f"out: the last axis must be contiguous; its stride is {strides[-1]}")
    if out.size and 0 in strides:
        raise ValueError(f"out: several weights share an item; strides are {out.strides}")
    if np.may_share_memory(out, t.data):
        raise ValueError("out: overlaps the tensor's own bytes")
