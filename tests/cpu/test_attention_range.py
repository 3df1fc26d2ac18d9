"""Attention on the CPU from small scores to float32's ends: right, or past them NaN, in every kernel."""

import numpy as np
import pytest
import range_cases
from range_cases import HIGHEST, LOWEST, assert_right

import lowlevel
from lowlevel.attention.reference import attention_float64

BOUND = 5e-6
WAYS = {
    "auto": dict(),
    "steps": dict(method="steps"),
    "bf16": dict(precision="bf16"),
}


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("way", WAYS)
def test_random_calls_over_the_range(rng, way):
    for number in range(60):
        n_head, n_head_kv = [(1, 1), (4, 2), (6, 1), (3, 3)][rng.integers(4)]
        n_tokens, n_kv = int(rng.choice([1, 2, 5, 17, 40])), int(rng.choice([1, 16, 63, 300]))
        sizes = n_head, n_head_kv, n_tokens, n_kv, int(rng.choice([1, 8, 40])), 16
        (q, k, v), scale = range_cases.operands(rng, *sizes, np.float32)
        options = dict(range_cases.options(rng, n_head, n_tokens, n_kv) if number % 2 else {})
        options["scale"] = scale
        with np.errstate(over="ignore"):
            right = range_cases.expected(q, k, v, **options)
        got = lowlevel.attention(q, k, v, return_lse=True, n_threads=2, **WAYS[way], **options)
        bound = 2.0**-7 if way == "bf16" else BOUND
        assert_right(got, right, bound, f"{sizes} {options}")


@pytest.mark.parametrize("n_tokens", [1, 5, 17, 40])
@pytest.mark.parametrize("way", WAYS)
def test_scores_past_integers(n_tokens, way):
    """The scaled maximum, rounded, lies 256 below the scores themselves."""
    q, k, v = (np.zeros((1, n, 64), np.float32) for n in (n_tokens, 2, 2))
    q[..., 0], k[0, :, 0], v[0] = 1, (5e9, -5e9), [[1], [5]]
    out = lowlevel.attention(q, k, v, scale=1.1, causal=False, **WAYS[way])
    assert (out == 1).all()
    for largest in (1.5 * 2.0**31, 2.0**66, 2.0**127, 2.0**128 - 2.0**120):  # bfloat16, too
        k[0, :, 0] = largest, -largest
        out, lse = lowlevel.attention(
            q, k, v, scale=1.0, causal=False, return_lse=True, **WAYS[way]
        )
        assert (out == 1).all()
        np.testing.assert_allclose(lse, np.float32(largest), rtol=1e-6)
    assert np.isnan(lowlevel.attention(q, k, v, scale=1.1, causal=False, **WAYS[way])).all()


@pytest.mark.parametrize("n_tokens", [1, 17])
@pytest.mark.parametrize("way", WAYS)
def test_a_whole_row_of_the_lowest_mask_is_the_mean(n_tokens, way):
    """As Hugging Face writes padding."""
    q, k = np.ones((1, n_tokens, 64), np.float32), np.ones((1, 4, 64), np.float32)
    v = np.arange(256, dtype=np.float32).reshape(1, 4, 64)
    mask = np.full((n_tokens, 4), LOWEST)
    options = dict(mask=mask, causal=False, return_lse=True, **WAYS[way])
    out, lse = lowlevel.attention(q, k, v, **options)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1), out.shape), rtol=1e-6)
    assert (lse == LOWEST).all()
    out, lse = lowlevel.attention(q, k, v, sinks=[HIGHEST], **options)
    assert (np.abs(out) < 1e-30).all() and (lse == HIGHEST).all()


@pytest.mark.parametrize("n_tokens", [2, 3, 40])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sinks", [None, [-np.inf], [1.0], [LOWEST]], ids=str)
def test_a_row_of_nan_stays_nan_whatever_the_sink(n_tokens, way, sinks):
    q, k, v = (np.ones((1, n, 8), np.float32) for n in (n_tokens, 50, 50))
    q[0, 1] = np.nan
    out, lse = lowlevel.attention(q, k, v, sinks=sinks, return_lse=True, **WAYS[way])
    assert np.isnan(out[0, 1]).all() and np.isnan(lse[0, 1])
    others = np.arange(n_tokens) != 1
    assert np.isfinite(out[0, others]).all() and np.isfinite(lse[0, others]).all()


@pytest.mark.parametrize("way", WAYS)
def test_nan_in_values_is_not_lost_far_below_the_maximum(way):
    """A weight of a key that is seen is never 0, and 0 * NaN would be NaN as well."""
    q, k, v = (np.zeros((1, n, 32), np.float32) for n in (20, 60, 60))
    q[..., 0], k[0, :, 0] = 1, -(2.0**127)
    k[0, 40, 0], v[0, 10, 3] = 2.0**127, np.nan
    out = lowlevel.attention(q, k, v, scale=1.0, window=45, causal=False, **WAYS[way])
    seen = np.arange(40, 60) - 45 < 10
    assert (np.isnan(out[0, :, 3]) == seen).all() and not np.isnan(out[0, :, :3]).any()


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_lse_within_its_bound(rng, method):
    """As the docstring says: 5e-6 of the larger of 1 and its largest magnitude."""
    for _ in range(30):
        n_tokens, n_kv, d = (
            int(rng.choice([1, 9, 30])),
            int(rng.integers(30, 80)),
            1 << rng.integers(8),
        )
        q, k, v = (rng.standard_normal((2, n, d), dtype=np.float32) for n in (n_tokens, n_kv, n_kv))
        options = dict(causal=bool(rng.integers(2)), window=int(rng.choice([1, 2, 50])))
        options["softcap"] = float(rng.choice([0.001, 1.0, 30.0]))
        options["scale"] = float(rng.choice([1.0, 3.0])) / np.sqrt(d)
        _, lse = lowlevel.attention(q, k, v, method=method, return_lse=True, **options)
        _, right = attention_float64(q, k, v, return_lse=True, **options)
        assert (np.abs(lse - right) <= 5e-6 * max(1, np.abs(right).max())).all()
