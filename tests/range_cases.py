"""Attention calls whose scores, masks and sinks reach from small to float32's ends, and what is right for them.

A score is one product of powers of two and short fractions, so that any order of float32's operations
gives it exactly: then what float64 makes of it is right for every kernel.
"""

import numpy as np

from lowlevel.attention.reference import attention_float64

LOWEST, HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
# Powers of two that the types' values may have, as factors of a score.
_EXPONENTS = {"float16": (-5, 15), "bfloat16": (-20, 60), "float32": (-20, 60)}


def operands(rng, n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, dtype):
    """[q, k, v] and a scale: each row's scores lie within a few powers of two of each other, many alike."""
    low, high = _EXPONENTS[np.dtype(dtype).name]
    q = np.zeros((n_head, n_tokens, d_k), np.float32)
    q[..., 0] = np.ldexp(rng.choice([-1.0, 1.0], q.shape[:2]), rng.integers(low, high, q.shape[:2]))
    k = np.zeros((n_head_kv, n_kv, d_k), np.float32)
    fractions = rng.choice([1.0, -1.0, 1 + 1 / 128, 1 + 5 / 128, 1.5, -1.75, 0.0], k.shape[:2])
    k[..., 0] = np.ldexp(fractions, rng.integers(high - 2, high, k.shape[:2]))
    v = rng.integers(-127, 128, (n_head_kv, n_kv, d_v)) / 64
    largest = 2 * (high - 1)  # of a score's power of two, at scale 1
    scale = 2.0 ** int(rng.integers(-largest, 129 - largest))
    return [x.astype(dtype) for x in (q, k, v)], scale


def options(rng, n_head, n_tokens, n_kv):
    """Options besides the scale, with values up to float32's ends."""
    chosen = {"causal": bool(rng.random() < 0.5)}
    if rng.random() < 0.3:
        chosen["window"] = int(rng.integers(1, n_kv + 5))
    if rng.random() < 0.5:
        sinks = np.array([-np.inf, LOWEST, -1e9, 0.5, 1e9, 2.9e38, HIGHEST], np.float32)
        chosen["sinks"] = rng.choice(sinks, n_head)
    if rng.random() < 0.2:
        chosen["softcap"] = 30.0
    if rng.random() < 0.2:
        chosen["alibi_slopes"] = np.ldexp(1.0, rng.integers(-8, 8, n_head)).astype(np.float32)
    if rng.random() < 0.5:
        values = np.array([0, -np.inf, LOWEST, -3e38, 2.9e38, -1e9, 1e9], np.float32)
        if "alibi_slopes" in chosen:  # 1e9 and a distance, rounded, depend on which was added first
            values = values[:-2]
        shape = (n_tokens, n_kv) if rng.random() < 0.5 else (n_head, n_tokens, n_kv)
        chosen["mask"] = rng.choice(values, shape)
        some_rows = rng.random(shape[:-1]) < 0.3  # of one value, as padding is written
        chosen["mask"][some_rows] = rng.choice(values, (int(some_rows.sum()), 1))
    return chosen


def expected(q, k, v, *, scale, softcap=None, mask=None, alibi_slopes=None, **rest):
    """(out, lse) by float64 from scores that are rounded to float32 after each of their steps.

    A row whose largest score is past float32 is NaN, keys below it are left out.
    """
    n_head, n_tokens, _ = q.shape
    n_kv = k.shape[1]
    wide_q, wide_k = q.astype(np.float64), np.repeat(k, n_head // k.shape[0], 0).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (scale * (wide_q @ wide_k.transpose(0, 2, 1))).astype(np.float32)
        if softcap:
            scores = (softcap * np.tanh(scores.astype(np.float64) / softcap)).astype(np.float32)
        if mask is not None:
            scores = np.where(mask == -np.inf, mask, scores + mask)
        if alibi_slopes is not None:
            positions = np.arange(n_kv - n_tokens, n_kv)[:, None]
            distance = np.abs(positions - np.arange(n_kv)).astype(np.float32)
            scores = scores - alibi_slopes[:, None, None] * distance
        nothing = np.zeros((n_head, n_tokens, 1)), np.zeros((k.shape[0], n_kv, 1))
        return attention_float64(*nothing, v, mask=scores, return_lse=True, **rest)


def assert_right(actual, right, bound, what=""):
    """Fail unless (out, lse) is `right`: NaN where that is, out up to `bound` times its largest value, lse
    up to `bound` times the larger of itself and 1."""
    for name, got, wanted in zip(("out", "lse"), actual, right, strict=True):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted)
        assert (np.isnan(got) == np.isnan(wanted)).all(), f"{name} {what}: NaN elsewhere"
        with np.errstate(invalid="ignore"):
            error = np.where(got == wanted, 0, np.abs(got - wanted))
        sizes = np.abs(wanted) if name == "lse" else np.nanmax(np.abs(wanted), initial=0)
        wrong = error > bound * np.maximum(np.where(np.isfinite(sizes), sizes, 0), 1)
        assert not wrong.any(), (
            f"{name} {what}: {got[wrong][:3]} instead of {wanted[wrong][:3]} at {np.argwhere(wrong)[:3]}"
        )
