"""Joining attention over several parts of the keys, on the device where they lie."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import numpy as np

from .. import devices
from ..arrays import Array
from ..shapes import dtype_name

_TYPES: tuple[str, ...] = ("float32", "float16", "bfloat16")
_FLOAT32: tuple[str, ...] = ("float32",)


def merge_states(
    outs: Iterable[Array],
    lses: Iterable[Array],
    *,
    out: Array | None = None,
    lse: Array | None = None,
) -> tuple[Array, Array]:
    """Join attention over several parts of the keys, computed by calls with ``return_lse=True``.

    ``out = sum(exp(lse_i - lse) * out_i)`` with ``lse = log(sum(exp(lse_i)))``, the same as one call
    over all keys. Give `sinks` to one of the calls only.

    Parameters
    ----------
    outs : sequence of arrays, (n_head, n_tokens, d_v)
        float32, float16 or bfloat16, all on one device, where they stay; a contiguous last axis.
    lses : sequence of arrays, float32, (n_head, n_tokens)
        -inf: that part had nothing to attend to, and its output is ignored.
    out, lse : arrays, float32, optional
        Where to write, of the shapes of one part, for example out of a pool: then nothing is allocated on a
        GPU. They may be the first part's own (float32) arrays, and share no memory with others.

    Returns
    -------
    out, lse : arrays, float32
        Those given, or new ones.

    Raises
    ------
    TypeError, ValueError
        No parts, shapes that do not fit, or arrays on several devices.
    """
    outs, lses = list(outs), list(lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(
            f"outs, lses: expected as many of one as of the other, at least 1; "
            f"got {len(outs)} and {len(lses)}"
        )
    device = devices.of_array(outs[0], "outs[0]")
    shape = outs[0].shape
    named = [(f"outs[{i}]", x, shape, _TYPES) for i, x in enumerate(outs)]
    named += [(f"lses[{i}]", x, shape[:-1], _FLOAT32) for i, x in enumerate(lses)]
    given = [("out", out, shape), ("lse", lse, shape[:-1])]
    named += [(name, x, of, _FLOAT32) for name, x, of in given if x is not None]
    for name, array, wanted, types in named:
        _check(array, name, wanted, types, device)
    for name, array, _ in given:
        if array is not None and not device.writable(array):
            raise ValueError(f"{name}: the array is read-only")
    if out is None:
        out = device.empty(shape, np.dtype(np.float32))
    if lse is None:
        lse = device.empty(shape[:-1], np.dtype(np.float32))
    kernels = importlib.import_module(f"lowlevel.{device.room}.merge_states")
    kernels.merge(device, outs, lses, out, lse)
    return out, lse


def _check(array, name, shape, types, device):
    there = devices.of_array(array, name)
    if there is not device:
        raise TypeError(
            f"{name}: expected an array on {device.name} like outs[0], got one on {there.name}"
        )
    if len(shape) < 1 or array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if dtype_name(array.dtype) not in types:
        raise TypeError(f"{name}: expected {' or '.join(types)}, got {array.dtype}")
    if array.size and len(shape) == 3 and array.shape[2] > 1 and array.strides[2] != array.itemsize:
        raise ValueError(f"{name}: the last axis must be contiguous, got strides {array.strides}")
