"""Sums, multiples and casts of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel import checks, devices

if TYPE_CHECKING:
    from lowlevel.arrays import Array


def add(
    x: Array,
    y: Array,
    *,
    row_ids: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """``x + y``: residuals, biases, and biases by expert.

    Parameters
    ----------
    x : array, (n_tokens, n) or (planes, n_tokens, n)
        Activations, a contiguous last axis.
    y : array
        Shape of x; or (n,), which is added to every row; or, with `row_ids`, (n_rows, n).
        Of any dtype that activations have there.
    row_ids : array of int32, (n_tokens,), optional
        Which row of y each row of x (of two axes) meets: the expert's bias.
    out : array of x's shape and dtype, optional
        Where the result goes: x itself, or memory of its own. Default: x.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`. Each sum is rounded once.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    IndexError
        A row id that y does not have (on a GPU: that row becomes NaN).
    """
    device = devices.of_array(x, "x")
    dtypes = device.activations
    rows = checks.rows_of(x, "x", device, dtypes)
    shape = tuple(x.shape)
    if row_ids is not None:
        if len(shape) != 2:
            raise ValueError(f"row_ids: x must have two axes with them, not {len(shape)}")
        checks.check_vector(row_ids, "row_ids", device, ("int32",), shape[0])
        addends = checks.rows_of(y, "y", device, dtypes)
        if y.ndim != 2 or y.shape[1] != shape[1]:
            raise ValueError(f"y: with row_ids expected (n_rows, {shape[1]}), got {tuple(y.shape)}")
    elif getattr(y, "ndim", 0) == 1:
        checks.check_weights(y, "y", device, shape[-1], dtypes)
        addends = checks.Rows(y, rows.shape, 0, 0)
    else:
        addends = checks.rows_of(y, "y", device, dtypes, shape)
    out = x if out is None else out
    target = checks.check_result(
        out, "out", device, dtypes, shape, {"x": x, "y": y, "row_ids": row_ids}, may_be=("x",)
    )
    if out.dtype != x.dtype:
        raise TypeError(f"out: expected {x.dtype} as x, got {out.dtype}")
    run = devices.kernels("lowlevel", device, "ops.elementwise").add
    run(device, rows, addends, row_ids, target, n_threads)
    return out


def scale(x: Array, factor: float, *, n_threads: int | None = None) -> Array:
    """``x * factor``, in place: say embeddings times sqrt(n_embd).

    Parameters
    ----------
    x : array, (n_tokens, n) or (planes, n_tokens, n)
        Activations, a contiguous last axis.
    factor : float
        Rounded to float32.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `x`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    """
    device = devices.of_array(x, "x")
    rows = checks.rows_of(x, "x", device, device.activations)
    factor = checks.real_number(factor, "factor")
    checks.check_writable(x, "x", device)
    devices.kernels("lowlevel", device, "ops.elementwise").scale(device, rows, factor, n_threads)
    return x


def cast(x: Array, out: Array, *, n_threads: int | None = None) -> Array:
    """Write x as another float type, rounded to nearest even.

    Parameters
    ----------
    x : array of float32, float16 or bfloat16, (n_tokens, n) or (planes, n_tokens, n)
        On any device; a contiguous last axis.
    out : array of one of them, shape of x
        Memory of its own, on the device of x; a contiguous last axis.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`. What is too large for float16 becomes infinite; a NaN stays one, of any payload.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    """
    device = devices.of_array(x, "x")
    source = checks.rows_of(x, "x", device, checks.FLOATS)
    target = checks.check_result(out, "out", device, checks.FLOATS, tuple(x.shape), {"x": x})
    devices.kernels("lowlevel", device, "ops.elementwise").cast(device, source, target, n_threads)
    return out
