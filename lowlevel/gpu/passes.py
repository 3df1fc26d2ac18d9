"""Chunks of K and V as kernels read them: where they lie, or decoded into scratch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lowlevel.shapes import resolve_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowlevel.shapes import Array

    from .launch_device import LaunchDevice


def _part(array, heads, keys):
    """``array[heads, keys]``; the array itself where that is all of it, for views take time."""
    if (heads, keys) == (slice(0, array.shape[0]), slice(0, array.shape[1])):
        return array
    return array[heads, keys]


def chunk_reader(
    device: LaunchDevice,
    source: Any,
    kv_heads: slice,
    scratch: Array,
    dtype_name: str,
    own: Array | None = None,
) -> Callable[[slice], Array]:
    """``read(keys)``: a chunk of K or V as a dense array, where it lies or decoded into `scratch`.

    Parameters
    ----------
    source : KVSource
    kv_heads : slice
    scratch : array of float32, 1-D
        Of at least a chunk's bytes, where the source is quantised; the next chunk takes the last one's place.
    dtype_name : str
        What quantised values become.
    own : array of float32, 1-D, optional
        What its reader takes besides; see `KVType.scratch_bytes`.
    """
    if source.type.is_dense:
        return functools.partial(_part, source.data, kv_heads)
    n_heads, d = kv_heads.stop - kv_heads.start, source.shape[2]
    values = scratch.view(resolve_dtype(dtype_name))
    decode = source.reader(device, kv_heads, own)
    made = {}  # keys of a chunk -> its array: all chunks but the last are alike

    def read(keys):
        n_keys = keys.stop - keys.start
        if n_keys not in made:
            made[n_keys] = values[: n_heads * n_keys * d].reshape(n_heads, n_keys, d)
        out = made[n_keys]
        if out.size:
            decode(keys, out)
        return out

    return read
