"""Sampling: which tokens the filters leave, against a plain statement of them in float64, and how often each is drawn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.models.sampling import Sampler, SamplingParams, candidates


def _logits(n, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def _left(logits, top_k, top_p, min_p):
    """The tokens that are left, with their probabilities before the temperature: one at a time, from the best."""
    best_first = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    kept = best_first[: top_k or None]

    def probabilities():
        weights = [math.exp(float(logits[token]) - float(logits[kept[0]])) for token in kept]
        return [weight / math.fsum(weights) for weight in weights]

    if top_p < 1:
        count, total = 0, 0.0
        for probability in probabilities():
            count, total = count + 1, total + probability
            if total >= top_p:
                break
        kept = kept[:count]
    shares = probabilities()
    return {token for token, share in zip(kept, shares, strict=True) if share >= min_p * shares[0]}


def test_by_default_the_most_probable_token():
    logits = _logits(1000)
    assert Sampler().sample(logits) == np.argmax(logits)
    assert Sampler().params == SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    logits[[17, 400]] = 99.0
    assert Sampler(SamplingParams(top_k=40, seed=1)).sample(logits) == 17  # the first of equal ones


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([1, 2, 50, 1500]),
    scale=st.sampled_from([0.01, 1.0, 5.0, 30.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 600, 10**6]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.05, 0.5, 1.0]),
)
def test_who_is_left(seed, n, scale, top_k, top_p, min_p):
    logits = _logits(n, seed, scale)
    params = SamplingParams(1.0, top_k, top_p, min_p)
    assert candidates(logits, params).tolist() == sorted(_left(logits, top_k, top_p, min_p))


def test_of_equal_logits_the_lower_ids_are_left():
    logits = np.zeros(2000, np.float32)
    logits[1500] = 1.0
    assert candidates(logits, SamplingParams(1.0, top_k=4)).tolist() == [0, 1, 2, 1500]
    share = math.e / (math.e + 1999)
    left = candidates(logits, SamplingParams(1.0, top_p=share + 2.5 / (math.e + 1999)))
    assert left.tolist() == [0, 1, 2, 1500]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0),
        SamplingParams(0.5),
        SamplingParams(2.0, top_k=7),
        SamplingParams(0.8, top_p=0.9),
        SamplingParams(1.5, min_p=0.1),
        SamplingParams(0.7, top_k=12, top_p=0.95, min_p=0.02),
    ],
    ids=str,
)
def test_how_often_each_is_drawn(params):
    """By chi-squared: the filters on the probabilities as they are, the draw on those after the temperature."""
    logits = _logits(16, seed=3, scale=1.5)
    left = sorted(_left(logits, params.top_k, params.top_p, params.min_p))
    weights = np.exp((logits[left].astype(np.float64) - logits.max()) / params.temperature)
    n_draws = 20000
    sampler = Sampler(dataclasses.replace(params, seed=11))
    drawn = np.bincount([sampler.sample(logits) for _ in range(n_draws)], minlength=len(logits))
    assert drawn.sum() == drawn[left].sum()
    expected = n_draws * weights / weights.sum()
    common = expected > 5
    chi_squared = ((drawn[left] - expected)[common] ** 2 / expected[common]).sum()
    freedom = max(1, common.sum() - 1)
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations


def test_a_seed_gives_the_same_tokens():
    logits = [_logits(300, seed) for seed in range(40)]

    def tokens(seed):
        sampler = Sampler(SamplingParams(1.0, top_k=50, seed=seed))
        return [sampler.sample(one) for one in logits]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)


def test_what_must_not_be_chosen_is_not():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 998]] = [-1e30, -1e30]
    for params in (
        SamplingParams(1.0, seed=0),
        SamplingParams(1e-30, top_k=10, seed=0),
        SamplingParams(1e30, top_p=0.999999, min_p=0.5, seed=0),
    ):
        sampler = Sampler(params)
        assert {sampler.sample(logits) for _ in range(60)} == {3, 998}


def test_extreme_temperatures():
    logits = _logits(100)
    cold, hot = Sampler(SamplingParams(1e-300, seed=0)), Sampler(SamplingParams(1e30, seed=0))
    assert {cold.sample(logits) for _ in range(50)} == {int(logits.argmax())}
    assert len({hot.sample(logits) for _ in range(200)}) > 70


def test_the_last_place_of_the_sum():
    """A draw so near to 1 that its product is the sum itself takes the last token that is possible."""
    sampler = Sampler(SamplingParams(1.0, seed=0))

    class Last:
        def random(self):
            return np.nextafter(1.0, 0.0)

    sampler._random = Last()
    logits = np.array([0.0, 1e-3, -np.inf], np.float32)
    assert sampler.sample(logits) == 1


def test_logits_are_only_read():
    logits = _logits(500)
    logits.flags.writeable = False
    before = logits.copy()
    Sampler(SamplingParams(0.7, top_k=9, top_p=0.9, min_p=0.1, seed=1)).sample(logits)
    assert (logits == before).all()
    strided = np.repeat(before, 2)[::2]
    assert Sampler().sample(strided) == before.argmax()


@pytest.mark.parametrize(
    ("logits", "kind", "words"),
    [
        ([1.0], TypeError, "expected an array of float32, got list"),
        (np.zeros(3), TypeError, "expected an array of float32, got float64"),
        (
            np.zeros((1, 3), np.float32),
            ValueError,
            r"expected the shape \(n_vocab,\), got \(1, 3\)",
        ),
        (np.zeros(0, np.float32), ValueError, r"expected the shape \(n_vocab,\), got \(0,\)"),
        (np.array([0, np.nan], np.float32), ValueError, "got nan"),
        (np.array([0, np.inf], np.float32), ValueError, "got inf"),
        (np.full(3, -np.inf, np.float32), ValueError, "-inf alone: no token is possible"),
    ],
)
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0)], ids=["greedy", "drawn"])
def test_logits_that_are_none(params, logits, kind, words):
    with pytest.raises(kind, match=f"^logits: .*{words}"):
        Sampler(params).sample(logits)


@pytest.mark.parametrize(
    ("params", "kind", "words"),
    [
        ({"temperature": -0.1}, ValueError, "temperature: expected a number .*at least 0, got -0.1"),
        ({"temperature": math.nan}, ValueError, "temperature: .* got nan"),
        ({"temperature": math.inf}, ValueError, "temperature: .* got inf"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number .*got '1'"),
        ({"top_k": -1}, ValueError, "top_k: expected an int, 0 to 2147483647, got -1"),
        ({"top_k": 1.5}, TypeError, "top_k: expected an int, .*got 1.5"),
        ({"top_k": True}, TypeError, "top_k: expected an int, .*got True"),
        ({"top_p": 1.01}, ValueError, "top_p: expected 0 to 1, got 1.01"),
        ({"top_p": -0.5}, ValueError, "top_p: expected a number .*at least 0, got -0.5"),
        ({"min_p": 2}, ValueError, "min_p: expected 0 to 1, got 2"),
        ({"seed": -1}, ValueError, "seed: expected an int, 0 to .*got -1"),
        ({"seed": "x"}, TypeError, "seed: expected an int, .*got 'x'"),
    ],
)  # fmt: skip
def test_params_that_are_none(params, kind, words):
    with pytest.raises(kind, match=words):
        SamplingParams(**params)


def test_a_sampler_of_something_else():
    with pytest.raises(TypeError, match="params: expected SamplingParams, got dict"):
        Sampler({"temperature": 1.0})
