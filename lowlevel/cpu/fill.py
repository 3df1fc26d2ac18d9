"""Decoding rows of a KV source from Python (compiled kernels call fills by address themselves)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import simd
from .address import address
from .jit import kernel

if TYPE_CHECKING:
    import numpy as np


@kernel
def _call(function, source, row_stride, n_rows, n_columns, out, stride):
    simd.call_fill(function, source, row_stride, n_rows, n_columns, out, stride)


def fill_rows(source: Any, kv_head: int, keys: slice, out: np.ndarray) -> None:
    """Decode keys ``keys`` (a slice) of one K/V head into `out` (keys, d), C-contiguous float32."""
    data = source.data[kv_head, keys]
    _call(
        source.fill_address,
        address(data),
        source.data.strides[1],
        out.shape[0],
        out.shape[1],
        address(out),
        out.shape[1],
    )
