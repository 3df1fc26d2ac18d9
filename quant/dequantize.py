"""Dequantisation: blocks to float32, float16 or, on a GPU, bfloat16."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowlevel import devices
from lowlevel.shapes import resolve_dtype

from .tensor import check_tensor

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from lowlevel.arrays import Array

    from .tensor import QuantTensor


DTYPES = ("float32", "float16")
DEVICE_DTYPES = (*DTYPES, "bfloat16")  # of a device that runs CUDA kernels


def dequantize(
    t: QuantTensor,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Decode a tensor's blocks.

    Equal to the gguf package's ``gguf.quants.dequantize``, bit for bit in float32 (NaN for NaN),
    for any bytes whatever.

    Parameters
    ----------
    t : QuantTensor, (..., rows, columns)
        Of any format, strided or read-only too, on any device.
    dtype : {"float32", "float16", "bfloat16"}, optional
        The two of 16 bits are the float32 value rounded to nearest even; bfloat16 on "cuda:N" and
        "cudasim" only. Default: that of `out`, else float32.
    out : array, optional
        On the tensor's device, shape of `t`, writeable, last axis contiguous. Reusing one is much
        faster than a fresh array, whose pages the operating system has to provide first.
    n_threads : int, optional
        Default: all CPUs of this process. 1 uses the calling thread alone. Not for a GPU.

    Returns
    -------
    array
        `out`, or a fresh C-contiguous array on the tensor's device. A GPU may still be writing it:
        what is asked of it next waits for that.

    Raises
    ------
    TypeError, ValueError
        Not a QuantTensor; a dtype, `out` or `n_threads` that does not fit. Nothing is written.
    """
    check_tensor(t)
    device = devices.of_array(t.data, "t")
    dtype = _checked_dtype(dtype, out, DTYPES if device.name == "cpu" else DEVICE_DTYPES)
    if out is not None:
        _check_out(out, t, dtype, device)
    if device.name != "cpu":
        return _on_device(t, dtype, out, n_threads, device)
    from lowlevel.cpu.threads import resolve_n_threads

    n_threads = resolve_n_threads(n_threads)
    if out is None:
        out = _empty_aligned(t.shape, dtype)
    if t.size:
        from .cpu.dequantize.run import (
            dequantize as run,  # compiles kernels: only when one is needed
        )

        run(t, out, n_threads)
    return out


def _on_device(t, dtype, out, n_threads, device):
    if n_threads is not None:
        raise ValueError(f"n_threads: {device.name} has no use for it; leave it out")
    if out is None:
        out = device.empty(t.shape, dtype)
    if t.size:
        from .gpu.dequantize.run import dequantize as run

        run(t, out, device)
    return out


def _empty_aligned(shape, dtype):
    """An array on a cache line's boundary, which NumPy's own large arrays miss by 16 bytes."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(n_bytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _checked_dtype(dtype, out, dtypes):
    if dtype is None:
        dtype = getattr(out, "dtype", "float32")
    try:
        result = resolve_dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.name not in dtypes:
        raise ValueError(f"dtype: expected one of {', '.join(dtypes)}; got {dtype!r}")
    return result if result.isnative else np.dtype(result.name)


def _check_out(out, t, dtype, device):
    if devices.of_array(out, "out") is not device:
        raise ValueError(f"out: expected an array on {device.name} like the tensor")
    if out.dtype != dtype:
        raise ValueError(f"out: expected {dtype} as dtype says, got {out.dtype}")
    if out.shape != t.shape:
        raise ValueError(f"out: expected shape {t.shape}, got {out.shape}")
    if not device.writable(out):
        raise ValueError("out: the array is read-only")
    strides = [stride for size, stride in zip(out.shape, out.strides, strict=True) if size > 1]
    if out.size and any(step % out.itemsize for step in (device.address(out), *strides)):
        raise ValueError(f"out: the array is not aligned to its {out.itemsize}-byte items")
    if out.size and out.shape[-1] > 1 and strides[-1] != out.itemsize:
        raise ValueError(f"out: the last axis must be contiguous; its stride is {strides[-1]}")
    if device.overlaps_itself(out):
        raise ValueError(f"out: several weights share an item; strides are {out.strides}")
    if device.overlap(out, t.data):
        raise ValueError("out: overlaps the tensor's own bytes")
