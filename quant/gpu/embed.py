"""Rows of a quantised table by index on a device that runs CUDA kernels: a launch for each run of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.gpu.ops.launch import refuse_n_threads

from .dequantize.run import decode_blocks

if TYPE_CHECKING:
    from lowlevel.checks import Rows

    from ..tensor import QuantTensor


def embed(device: Any, t: QuantTensor, ids: np.ndarray, out: Rows, n_threads: int | None) -> None:
    """See `quant.embed`; out as `lowlevel.checks.Rows`."""
    refuse_n_threads(device, n_threads)
    if not out.array.size:
        return
    starts = np.flatnonzero(np.diff(ids.astype(np.int64), prepend=-2) != 1)
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        first = int(ids[start])
        rows = t.data[first : first + int(stop - start)]
        decode_blocks(t.format, rows, out.array[start:stop], device)
