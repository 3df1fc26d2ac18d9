"""The float64 oracle against a direct scalar transcription of DESIGN.md's "Scores"."""

import math

import numpy as np
import pytest

from lowlevel.attention.reference import attention_float64, scaled_error


def scalar_attention(q, k, v, h, i, *, scale, causal, mask, window, softcap, slopes, sinks):
    """One row of one head, with plain floats and loops."""
    n_head, n_tokens, d_k = q.shape
    n_head_kv, n_kv, d_v = v.shape
    kv = h * n_head_kv // n_head
    position = n_kv - n_tokens + i
    logits = {}
    for c in range(n_kv):
        if causal and c > position:
            continue
        if window is not None and c <= position - window:
            continue
        bias = 0.0 if mask is None else float(mask[i, c] if mask.ndim == 2 else mask[h, i, c])
        if bias == -math.inf:
            continue
        s = scale * sum(float(q[h, i, d]) * float(k[kv, c, d]) for d in range(d_k))
        if softcap:
            s = softcap * math.tanh(s / softcap)
        logits[c] = s + bias - (0.0 if slopes is None else float(slopes[h]) * abs(position - c))
    total = sum(math.exp(s) for s in logits.values())
    total += 0.0 if sinks is None else math.exp(float(sinks[h]))
    if total == 0.0:
        return [0.0] * d_v, -math.inf
    row = [
        sum(math.exp(s) * float(v[kv, c, d]) for c, s in logits.items()) / total for d in range(d_v)
    ]
    return row, math.log(total)


@pytest.mark.parametrize("seed", range(12))
def test_matches_a_scalar_transcription(seed):
    rng = np.random.default_rng(seed)
    n_head_kv = int(rng.integers(1, 4))
    n_head = n_head_kv * int(rng.integers(1, 4))
    n_kv = int(rng.integers(1, 20))
    n_tokens = int(rng.integers(1, n_kv + 1))
    d_k, d_v = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    q = rng.normal(size=(n_head, n_tokens, d_k)).astype("f4")
    k = rng.normal(size=(n_head_kv, n_kv, d_k)).astype("f2")
    v = rng.normal(size=(n_head_kv, n_kv, d_v)).astype("f4")
    mask = None
    if seed % 3:
        shape = (n_tokens, n_kv) if seed % 3 == 1 else (n_head, n_tokens, n_kv)
        mask = rng.normal(size=shape).astype("f4")
        mask[rng.random(shape) < 0.4] = -np.inf
    options = dict(
        scale=float(rng.uniform(0.1, 1.0)),
        causal=bool(seed % 2),
        window=[None, 1, 5][seed % 3],
        softcap=[None, 2.0][seed // 2 % 2],
    )
    slopes = [None, rng.random(n_head)][seed // 3 % 2]
    sinks = [None, rng.normal(size=n_head)][seed // 4 % 2]
    out, lse = attention_float64(
        q, k, v, mask=mask, alibi_slopes=slopes, sinks=sinks, return_lse=True, **options
    )
    for h in range(n_head):
        for i in range(n_tokens):
            row, log_total = scalar_attention(
                q, k, v, h, i, mask=mask, slopes=slopes, sinks=sinks, **options
            )
            np.testing.assert_allclose(out[h, i], row, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(lse[h, i], log_total, rtol=1e-12, atol=1e-12)


def test_sampled_rows_and_heads_are_slices_of_the_whole():
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=s) for s in [(6, 7, 4), (2, 11, 4), (2, 11, 3)])
    whole = attention_float64(q, k, v)
    sample = attention_float64(q, k, v, rows=[-1, 0, 3], heads=[5, 2])
    np.testing.assert_array_equal(sample, whole[np.ix_([5, 2], [6, 0, 3])])
    with pytest.raises(IndexError):
        attention_float64(q, k, v, rows=[7])


def test_left_out_keys_may_hold_nan_and_inf():
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=s) for s in [(2, 3, 4), (2, 9, 4), (2, 9, 5)])
    mask = np.zeros((3, 9))
    mask[:, 2] = -np.inf
    expected = attention_float64(q, k, v, mask=mask, window=4)
    k[:, 2], v[:, 2] = np.nan, np.inf
    k[:, 0], v[:, 0] = np.inf, np.nan  # before every window
    k[:, 8, 0] = np.nan  # after all but the last query
    actual = attention_float64(q, k, v, mask=mask, window=4, rows=[0, 1])
    np.testing.assert_allclose(actual, expected[:, :2], rtol=1e-12, atol=1e-14)


def test_rows_with_nothing_to_attend_to_are_zero():
    q, k, v = np.ones((1, 2, 4)), np.ones((1, 3, 4)), np.ones((1, 3, 2))
    mask = np.full((2, 3), -np.inf)
    out, lse = attention_float64(q, k, v, mask=mask, return_lse=True)
    assert (out == 0).all() and (lse == -np.inf).all()
    out, lse = attention_float64(q, k, v, mask=mask, sinks=np.array([0.5]), return_lse=True)
    assert (out == 0).all() and (lse == 0.5).all()


def test_scaled_error_is_nan_for_nan():
    assert scaled_error([1.0, 2.5], [1.0, 2.0]) == 0.25
    assert math.isnan(scaled_error([np.nan], [1.0]))
