"""Gated activations of feed-forward blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel import checks, devices

if TYPE_CHECKING:
    from lowlevel.arrays import Array


def swiglu(
    gate: Array, up: Array, *, out: Array | None = None, n_threads: int | None = None
) -> Array:
    """``silu(gate) * up`` with ``silu(x) = x / (1 + exp(-x))``.

    Shazeer, "GLU Variants Improve Transformer" (2020), equation 6 with beta 1.

    Parameters
    ----------
    gate, up : array, (n_tokens, n) or (planes, n_tokens, n)
        Activations of one dtype, a contiguous last axis: say, the halves of one array of rows.
    out : array, shape of gate, optional
        Where the result goes: gate or up itself, or memory of its own; of any dtype that activations have there. Default: gate.
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
    Within 5e-7 of the size of gate * up in float32 (and of the exact value, relatively, where gate is above -87; below it is 0).
    NaN gives NaN, as does a gate of -inf.
    """
    return _gated("swiglu", gate, up, out, n_threads)


def geglu(
    gate: Array, up: Array, *, out: Array | None = None, n_threads: int | None = None
) -> Array:
    """``gelu(gate) * up`` with ``gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))``.

    Shazeer, "GLU Variants Improve Transformer" (2020), equation 6; GELU as Hendrycks and Gimpel, "Gaussian Error Linear Units"
    (2016), approximate it. Parameters, result, errors and the bound by gate * up are those of `swiglu`.
    """
    return _gated("geglu", gate, up, out, n_threads)


def clamped_swiglu(
    gate: Array,
    up: Array,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """``g / (1 + exp(-alpha g)) * (u + 1)``, where g is gate but at most `limit`, and u is up within ± `limit`.

    As in OpenAI's gpt-oss (model card, 2025). Parameters, result and errors are those of `swiglu`; besides

    Parameters
    ----------
    alpha : float
    limit : float
        At least 0.

    Notes
    -----
    Within 5e-7 of the size of g * (abs(u) + 1) in float32. NaN gives NaN.
    """
    alpha = checks.real_number(alpha, "alpha")
    limit = checks.real_number(limit, "limit", least=0.0)
    return _gated("clamped_swiglu", gate, up, out, n_threads, alpha, limit)


def _gated(kind, gate, up, out, n_threads, alpha=1.0, limit=0.0):
    device = devices.of_array(gate, "gate")
    dtypes = device.activations
    shape = tuple(gate.shape)
    gates = checks.rows_of(gate, "gate", device, dtypes)
    ups = checks.rows_of(up, "up", device, dtypes, shape)
    if up.dtype != gate.dtype:
        raise TypeError(f"up: expected {gate.dtype} as gate, got {up.dtype}")
    out = gate if out is None else out
    operands = {"gate": gate, "up": up}
    target = checks.check_result(out, "out", device, dtypes, shape, operands, may_be=operands)
    run = devices.kernels("lowlevel", device, "ops.gated").gated
    run(device, kind, gates, ups, target, alpha, limit, n_threads)
    return out
