"""Joining attention over several parts of the keys, on the device where they lie."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .. import checks, devices
from ..arrays import Array

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
    named = [(f"outs[{i}]", x, shape, checks.FLOATS) for i, x in enumerate(outs)]
    named += [(f"lses[{i}]", x, shape[:-1], _FLOAT32) for i, x in enumerate(lses)]
    given = [("out", out, shape), ("lse", lse, shape[:-1])]
    named += [(name, x, of, _FLOAT32) for name, x, of in given if x is not None]
    for name, array, wanted, types in named:
        checks.check_array(array, name, device, types, "outs[0]")
        checks.check_shape(array, name, wanted)
        if len(wanted) == 3:
            checks.check_last_axis(array, name)
    for name, array, _ in given:
        if array is not None:
            checks.check_writable(array, name, device)
    if out is None:
        out = device.empty(shape, np.dtype(np.float32))
    if lse is None:
        lse = device.empty(shape[:-1], np.dtype(np.float32))
    devices.kernels("lowlevel", device, "merge_states").merge(device, outs, lses, out, lse)
    return out, lse
