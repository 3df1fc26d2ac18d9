"""Attention in NumPy float64, written to be read: the oracle of the tests and of ``kqcap bench``.

It says what :func:`lowlevel.attention` means, one head at a time and with no regard for memory or
speed. ``heads`` and ``rows`` pick a sample, so that a long prompt can be checked in a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lowlevel.arrays import Array

__all__ = ["attention_float64", "kept_keys", "scaled_error"]


def kept_keys(
    n_kv: int, positions: np.ndarray, *, causal: bool = True, window: int | None = None
) -> np.ndarray:
    """Which keys each query may see by its position alone.

    Parameters
    ----------
    n_kv : int
        Number of keys; key c sits at position c.
    positions : (n_rows,) int array
        Position of each query.
    causal : bool
        Leave out keys after the query.
    window : int, optional
        Leave out keys at ``position - window`` and before.

    Returns
    -------
    (n_rows, n_kv) bool array
    """
    position = np.asarray(positions, dtype=np.int64)[:, None]
    key = np.arange(n_kv, dtype=np.int64)[None, :]
    keep = np.ones((position.shape[0], n_kv), dtype=bool)
    if causal:
        keep &= key <= position
    if window is not None:
        keep &= key > position - window
    return keep


def attention_float64(
    q: Array,
    k: Array,
    v: Array,
    rows: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    mask: Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    return_lse: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Softmax attention of sampled rows and heads, all of it in float64.

    For head h, query position p and key position c the score is ``scale * q.k``; with a softcap
    ``softcap * tanh(score / softcap)``; plus ``mask``; minus ``alibi_slopes[h] * |p - c|``. Keys
    after the query (``causal``), keys at ``p - window`` and before, and keys under a mask of -inf
    are left out: they contribute nothing even where K or V holds NaN or inf.

    Parameters
    ----------
    q : (n_head, n_tokens, d_k) array
    k : (n_head_kv, n_kv, d_k) array
    v : (n_head_kv, n_kv, d_v) array
        Any float dtype and strides; query row i sits at position ``n_kv - n_tokens + i``, and
        query head h reads K/V head ``h // (n_head // n_head_kv)``.
    rows, heads : sequences of int, optional
        The query rows and heads to compute; None: all. Negative indices count from the end.
    scale : float, optional
        None: ``1 / sqrt(d_k)``.
    mask : (n_tokens, n_kv) or (n_head, n_tokens, n_kv) array, optional
    alibi_slopes, sinks : (n_head,) array, optional
        A sink is one extra logit in the maximum and the denominator, with no value.
    return_lse : bool
        Also return the log of each row's denominator (the sink included).

    Returns
    -------
    out : (len(heads), len(rows), d_v) float64 array
        A row with nothing to attend to is 0.
    lse : (len(heads), len(rows)) float64 array
        Only with ``return_lse``; -inf for a row with neither key nor sink.
    """
    n_head, n_tokens, d_k = q.shape
    n_head_kv, n_kv, d_v = v.shape
    rows = _indices(rows, n_tokens)
    heads = _indices(heads, n_head)
    scale = 1.0 / np.sqrt(d_k) if scale is None else float(scale)
    positions = rows + (n_kv - n_tokens)
    visible = kept_keys(n_kv, positions, causal=causal, window=window)
    distance = np.abs(positions[:, None] - np.arange(n_kv)[None, :])

    out = np.zeros((len(heads), len(rows), d_v))
    lse = np.full((len(heads), len(rows)), -np.inf)
    for at, head in enumerate(heads):
        head_kv = head // (n_head // n_head_kv)
        keep = visible
        with np.errstate(all="ignore"):  # left-out keys may hold anything
            score = scale * (_float64(q[head][rows]) @ _float64(k[head_kv]).T)
            if softcap:
                score = softcap * np.tanh(score / softcap)
            if mask is not None:
                bias = _float64((mask if mask.ndim == 2 else mask[head])[rows])
                score = score + bias
                keep = keep & (bias != -np.inf)
            if alibi_slopes is not None:
                score = score - float(alibi_slopes[head]) * distance
        score = np.where(keep, score, -np.inf)
        sink = -np.inf if sinks is None else float(sinks[head])
        weight, lse[at] = _softmax(score, sink)
        out[at] = _weighted_sum(weight, keep, _float64(v[head_kv]))
    return (out, lse) if return_lse else out


def scaled_error(actual: Array, expected: Array) -> float:
    """Largest difference over the largest magnitude of ``expected``: the measure of the error bound.

    NaN in either input gives NaN, so that no comparison with a bound passes by accident.
    """
    expected = _float64(expected)
    if expected.size == 0:
        return 0.0
    largest = np.max(np.abs(expected))
    difference = np.max(np.abs(_float64(actual) - expected))
    return float(difference / largest) if largest > 0 else float(difference)


def _softmax(score, sink):
    """Weights of each row and the log of its denominator, the sink counted in."""
    largest = np.maximum(np.max(score, axis=1, initial=-np.inf), sink)
    empty = largest == -np.inf
    shift = np.where(empty, 0.0, largest)[:, None]
    weight = np.exp(score - shift)
    total = weight.sum(axis=1) + np.exp(sink - shift[:, 0])
    with np.errstate(divide="ignore"):
        lse = shift[:, 0] + np.log(total)
    return weight / np.where(empty, 1.0, total)[:, None], lse


def _weighted_sum(weight, keep, v):
    if np.all(np.isfinite(v)):
        return weight @ v
    # 0 * NaN is NaN: sum the kept keys only, row by row
    return np.stack([w[kept] @ v[kept] for w, kept in zip(weight, keep, strict=True)])


def _indices(chosen, count):
    indices = np.arange(count) if chosen is None else np.asarray(chosen, dtype=np.int64)
    if indices.size and (indices.min() < -count or indices.max() >= count):
        raise IndexError(f"index out of range for {count}: {indices.tolist()}")
    return np.where(indices < 0, indices + count, indices)


def _float64(x):
    return np.asarray(x).astype(np.float64)
