"""Root mean square layer normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel import checks, devices

if TYPE_CHECKING:
    from lowlevel.arrays import Array


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    add: Array | None = None,
    eps: float = 1e-6,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Scale each row to a root mean square of 1, times a weight: ``x / sqrt(mean(x**2) + eps) * weight``.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.

    Parameters
    ----------
    x : array, (n_tokens, n) or (planes, n_tokens, n)
        Activations, a contiguous last axis. Heads of q or k, say (n_head, n_tokens, d), are planes.
    weight : array of float32, (n,), optional
        On the device of x, contiguous. None: all ones.
    add : array, shape of x, optional
        ``x += add`` first, each sum rounded to x's dtype: what a layer adds to the residual stream, and the norm of the next one,
        in one. Of any dtype that activations have there; out is memory of its own then.
    eps : float
        At least 0.
    out : array, shape of x, optional
        Where the result goes: x itself, or memory of its own; of any dtype that activations have there. Default: x.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.

    Notes
    -----
    Within 1e-6 of the exact value, relatively, in float32, up to 16384 columns; other dtypes are rounded once at the end. Squares are
    float32: a row with values beyond 1.8e19 becomes 0. A NaN makes its row NaN; an infinity makes itself NaN and the rest of its row 0.
    """
    device = devices.of_array(x, "x")
    dtypes = device.activations
    shape = tuple(x.shape)
    rows = checks.rows_of(x, "x", device, dtypes)
    checks.check_weights(weight, "weight", device, x.shape[-1])
    eps = checks.real_number(eps, "eps", least=0.0)
    addends = None
    if add is not None:
        addends = checks.rows_of(add, "add", device, dtypes, shape)
        checks.check_result(x, "x", device, dtypes, shape, {"add": add, "weight": weight})
        if out is None:
            raise ValueError("out: with add it must be given, an array beside x")
    out = x if out is None else out
    others = {"x": x, "weight": weight, "add": add}
    may_be = ("x",) if add is None else ()
    target = checks.check_result(out, "out", device, dtypes, shape, others, may_be)
    devices.kernels("lowlevel", device, "ops.norm").rms_norm(
        device, rows, addends, weight, eps, target, n_threads
    )
    return out
