"""Rows of a quantised table by index: token embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel import checks, devices

from .tensor import check_tensor

if TYPE_CHECKING:
    from lowlevel.arrays import Array

    from .tensor import QuantTensor


def embed(t: QuantTensor, ids: np.ndarray, out: Array, *, n_threads: int | None = None) -> Array:
    """``out[i] = dequantize(t[ids[i]])``, for no rows but these.

    Parameters
    ----------
    t : QuantTensor, (n_vocab, n)
        Of any format, on any device.
    ids : numpy.ndarray of int32, (n_tokens,)
        On the host, whatever the device of t: rows are found there.
    out : array, (n_tokens, n)
        On the device of t, memory of its own, of any dtype that activations have there; a contiguous last axis.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`. A GPU may still be writing it: what is asked of it next waits for that.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    IndexError
        An id that t does not have; nothing has been written.
    """
    check_tensor(t)
    if t.ndim != 2:
        raise ValueError(f"t: expected (n_vocab, n), got {t.shape}")
    device = devices.of_array(t.data, "t")
    checks.check_array(ids, "ids", devices.get("cpu"), ("int32",))
    if ids.ndim != 1:
        raise ValueError(f"ids: expected (n_tokens,), got shape {ids.shape}")
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
    if lowest < 0 or highest >= t.shape[0]:
        bad = lowest if lowest < 0 else highest
        raise IndexError(f"ids: t has rows 0 to {t.shape[0] - 1}; got {bad}")
    shape = len(ids), t.columns
    rows = checks.check_result(out, "out", device, device.activations, shape, {"t": t.data})
    devices.kernels("quant", device, "embed").embed(device, t, ids, rows, n_threads)
    return out
