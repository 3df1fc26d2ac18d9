"""Dequantisation: blocks to float32, float16 or, on a GPU, bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel import checks, devices
from lowlevel.shapes import resolve_dtype

from .tensor import check_tensor

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from lowlevel.arrays import Array

    from .tensor import QuantTensor


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
    room = devices.kernels("quant", device, "dequantize.run")
    n_threads = room.resolve_n_threads(n_threads, device)
    if out is None:
        wanted = _checked_dtype("float32" if dtype is None else dtype, room.DTYPES)
        out = device.empty_aligned(t.shape, wanted)
    else:
        dtypes = room.DTYPES
        if dtype is not None:
            dtypes = (_checked_dtype(dtype, dtypes).name,)
        _check_out(out, t, dtypes, device)
    if t.size:
        room.dequantize(t, out, n_threads, device)
    return out


def _checked_dtype(dtype, dtypes):
    try:
        result = resolve_dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.name not in dtypes:
        raise ValueError(f"dtype: expected one of {', '.join(dtypes)}; got {dtype!r}")
    return result if result.isnative else np.dtype(result.name)


def _check_out(out, t, dtypes, device):
    checks.check_array(out, "out", device, dtypes, "t")
    checks.check_shape(out, "out", t.shape)
    checks.check_alignment(out, "out", device)
    checks.check_last_axis(out, "out")
    checks.check_writable(out, "out", device)
    checks.check_apart(out, "out", device, {"t": t.data})
