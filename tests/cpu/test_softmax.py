"""Softmax over panels of scores: exp and tanh against float64, masks, and the online state."""

import numpy as np
import pytest

from lowlevel.cpu import simd, softmax
from lowlevel.cpu.jit import kernel

LANES = 16
# exp(-87), the smallest weight of a key that is not left out
SMALLEST = float(np.exp(-87.0))


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@kernel
def _exp(x, out):
    for i in range(0, len(x), LANES):
        simd.store(out, i, softmax.exp(simd.load_f32x16(x, i)))


@kernel
def _tanh(x, out):
    for i in range(0, len(x), LANES):
        simd.store(out, i, softmax.tanh(simd.load_f32x16(x, i)))


def apply(function, values):
    values = np.asarray(values, np.float32).ravel()
    padded = np.resize(values, -(-len(values) // LANES) * LANES)
    out = np.empty_like(padded)
    function(padded, out)
    return out[: len(values)]


def all_floats(rng, low, high, n=2**18):
    """Floats between two numbers: evenly spread, and evenly spread over their bits."""
    bits = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits) & (bits >= low) & (bits <= high)]
    return np.concatenate([rng.uniform(low, high, n).astype(np.float32), bits])


# ---------------------------------------------------------------- exp and tanh


def test_exp_is_within_2e_7(rng):
    x = all_floats(rng, -87, 0)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(apply(_exp, x) - exact) / exact
    worst = error.argmax()
    assert error[worst] < 2e-7, f"exp({x[worst]!r}) off by {error[worst]}"


def test_exp_of_special_values():
    values = [0, -0.0, -1e-45, -87, -87.00001, -100, -1e30, -np.inf]
    result = apply(_exp, values)
    np.testing.assert_array_equal(result[:3], 1)
    np.testing.assert_array_equal(result[3:], result[3])  # what is below -87 counts as -87
    assert abs(result[3] / SMALLEST - 1) < 1e-6
    assert np.isnan(apply(_exp, [np.nan, -np.nan])).all()


def test_exp_never_falls(rng):
    """Nearly monotonic: a larger score never weighs less by more than rounding."""
    x = np.sort(all_floats(rng, -90, 0))
    result = apply(_exp, x).astype(np.float64)
    assert (np.diff(result) >= -2.5e-7 * result[1:]).all()
    assert (result > 0).all() and (result <= 1).all()


def test_tanh_is_within_2e_7(rng):
    x = np.concatenate([all_floats(rng, -20, 20), all_floats(rng, -1, 1)])
    exact = np.tanh(x.astype(np.float64))
    result = apply(_tanh, x)
    error = np.abs(result - exact)
    worst = error.argmax()
    assert error[worst] < 2e-7, f"tanh({x[worst]!r}) off by {error[worst]}"
    small = np.abs(x) > 1e-37
    relative = error[small] / np.abs(exact[small])
    assert relative.max() < 3e-7
    assert (np.abs(result) <= 1).all()
    np.testing.assert_array_equal(apply(_tanh, -x), -result)


def test_tanh_of_special_values():
    values = np.float32([0, -0.0, 1e-45, 1e-20, 10, 30, 3e38, np.inf, -np.inf])
    result = apply(_tanh, values)
    np.testing.assert_array_equal(result[:4], values[:4])
    np.testing.assert_array_equal(result[4:], [1, 1, 1, 1, -1])
    assert np.isnan(apply(_tanh, [np.nan])).all()
    beside = np.nextafter(np.float32(0.625), np.float32([0, 1]))  # where the formulas meet
    np.testing.assert_allclose(apply(_tanh, beside), np.tanh(beside), rtol=3e-7)


# ---------------------------------------------------------------- panels


@kernel
def _update(kq, start, panel, n_keys, scale, masked, tops, top, sums, total, factors, factor):
    return softmax.update(
        kq, start, panel, n_keys, scale, masked, tops, top, sums, total, factors, factor
    )


class State:
    """Running softmax of `panel` rows, each array at an offset of its own in a larger one."""

    def __init__(self, panel):
        self.panel = panel
        self.memory = np.full((3, panel + 40), 7, np.float32)
        self.offsets = (3, 17, 21)
        self.tops[:], self.sums[:] = -np.inf, 0

    def _part(self, i):
        return self.memory[i, self.offsets[i] : self.offsets[i] + self.panel]

    tops = property(lambda self: self._part(0))
    sums = property(lambda self: self._part(1))
    factors = property(lambda self: self._part(2))

    def update(self, scores, scale=1.0, masked=False):
        """(weights, whether any output must be scaled) for scores (keys, panel)."""
        n_keys, panel = scores.shape
        start = 5
        kq = np.full(scores.size + 64, 9, np.float32)
        inside = kq[start : start + scores.size]
        inside[:] = scores.ravel()
        arrays = [x for pair in zip(self.memory, self.offsets, strict=True) for x in pair]
        scale = np.float32(scale)
        rescale = _update(kq, start, panel, n_keys, scale, masked, *arrays)
        assert (kq[:start] == 9).all() and (kq[start + scores.size :] == 9).all()
        for row, offset in zip(self.memory, self.offsets, strict=True):
            assert (row[:offset] == 7).all() and (row[offset + panel :] == 7).all()
        return inside.reshape(scores.shape).copy(), rescale


def random_scores(rng, n_keys, panel, deviation=3.0):
    return (deviation * rng.standard_normal((n_keys, panel))).astype(np.float32)


@pytest.mark.parametrize("panel", [16, 32, 64])
@pytest.mark.parametrize("n_keys", [1, 2, 3, 4, 5, 7, 64, 129])
@pytest.mark.parametrize("masked", [False, True])
def test_one_update(rng, panel, n_keys, masked):
    scores, scale = random_scores(rng, n_keys, panel), rng.uniform(0.1, 2)
    state = State(panel)
    weights, rescale = state.update(scores, scale, masked)
    wide = scores.astype(np.float64) * np.float32(scale)
    np.testing.assert_allclose(state.tops, wide.max(0), rtol=1e-6)
    exact = np.exp(wide - wide.max(0))
    np.testing.assert_allclose(weights, exact, rtol=4e-6, atol=1e-37)
    np.testing.assert_allclose(state.sums, exact.sum(0), rtol=2e-6)
    assert rescale


@pytest.mark.parametrize("masked", [False, True])
def test_chunks_give_what_one_update_gives(rng, masked):
    """Whatever the order of the chunks: rising maxima, falling ones, rows of left-out keys."""
    for order in ("random", "rising", "falling"):
        panel, n_keys = 32, int(rng.integers(50, 200))
        scores = random_scores(rng, n_keys, panel, 10)
        if order != "random":
            scores = np.sort(scores, axis=0)[:: 1 if order == "rising" else -1].copy()
        if masked:
            scores[rng.random(scores.shape) < 0.4] = -np.inf
            scores[:20, 3], scores[20:, 4], scores[:, 5] = -np.inf, -np.inf, -np.inf
        values = rng.standard_normal((n_keys, 24))

        at_once = State(panel)
        weights, _ = at_once.update(scores, 0.5, masked)
        whole = weights.T.astype(np.float64) @ values / np.maximum(at_once.sums, 1e-30)[:, None]

        state, output, first = State(panel), np.zeros((panel, 24)), 0
        while first < n_keys:
            n = int(rng.integers(1, 40))
            weights, rescale = state.update(scores[first : first + n], 0.5, masked)
            assert rescale == (state.factors != 1).any() or first == 0
            output *= state.factors[:, None]
            output += weights.T.astype(np.float64) @ values[first : first + n]
            first += n
        np.testing.assert_array_equal(state.tops, at_once.tops)
        np.testing.assert_allclose(state.sums, at_once.sums, rtol=5e-6)
        output /= np.maximum(state.sums, 1e-30)[:, None]
        np.testing.assert_allclose(output, whole, rtol=0, atol=1e-5)
        if masked:
            assert not output[5].any()
            assert state.sums[5] == 0 and state.tops[5] == -np.inf


def test_left_out_is_exactly_0_and_nothing_else_is(rng):
    scores = random_scores(rng, 100, 16, 200.0)  # far below the maximum, too
    left_out = rng.random(scores.shape) < 0.5
    scores[left_out] = -np.inf
    state = State(16)
    weights, _ = state.update(scores, 1.0, True)
    np.testing.assert_array_equal(weights == 0, left_out)
    assert (weights[~left_out] >= 0.999 * SMALLEST).all()


def test_no_key_so_far(rng):
    """Rows of -inf alone keep an empty state, with `masked` or without, until a key comes."""
    for masked in (False, True):
        state = State(16)
        scores = random_scores(rng, 10, 16)
        scores[:, ::2] = -np.inf
        weights, _ = state.update(scores, 1.0, masked)
        assert not weights[:, ::2].any()
        assert (state.sums[::2] == 0).all() and np.isneginf(state.tops[::2]).all()
        assert np.isfinite(state.factors).all()
        later = random_scores(rng, 10, 16)
        state.update(later, 1.0, masked)
        np.testing.assert_array_equal(state.tops[::2], later.max(0)[::2])
        exact = np.exp(later.astype(np.float64) - later.max(0)).sum(0)
        np.testing.assert_allclose(state.sums[::2], exact[::2], rtol=2e-6)
        assert np.isfinite(state.factors).all()


def test_a_nan_score_shows_in_its_row_alone(rng):
    for masked in (False, True):
        scores = random_scores(rng, 20, 32)
        state, clean = State(32), State(32)
        expected, _ = clean.update(scores, 1.0, masked)
        scores[7, 5] = np.nan
        weights, _ = state.update(scores, 1.0, masked)
        assert np.isnan(state.sums[5]) and np.isnan(weights[7, 5])
        others = np.arange(32) != 5
        np.testing.assert_array_equal(state.sums[others], clean.sums[others])
        np.testing.assert_array_equal(weights[:, others], expected[:, others])


def test_rows_of_nan_alone(rng):
    scores = np.full((6, 16), np.nan, np.float32)
    state = State(16)
    weights, _ = state.update(scores, 1.0, False)
    assert np.isnan(weights).all() and np.isnan(state.sums).all()


def test_no_rescale_while_maxima_stay(rng):
    state = State(32)
    scores = random_scores(rng, 30, 32)
    state.update(scores)
    _, rescale = state.update(np.minimum(scores, state.tops) - 1)
    assert not rescale
    np.testing.assert_array_equal(state.factors, 1)
    scores[:] = -5
    scores[3, 20] = 1e4
    _, rescale = state.update(scores)
    assert rescale
    assert state.factors[20] < 1e-30
    np.testing.assert_array_equal(np.delete(state.factors, 20), 1)


# ---------------------------------------------------------------- transforming and masking scores


@kernel
def _transform(kq, start, panel, n_keys, scale, softcap, slopes, slope, positions, position, key):
    softmax.transform(
        kq, start, panel, n_keys, scale, softcap, slopes, slope, positions, position, key
    )


@pytest.mark.parametrize("softcap", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("scale", [1.0, 0.07, -0.3, 0.0])
def test_transform(rng, softcap, scale):
    panel, n_keys, key = 32, 37, 1000
    scores = random_scores(rng, n_keys, panel, 20)
    slopes = np.concatenate([np.full(3, np.nan), rng.uniform(0, 0.5, panel)]).astype(np.float32)
    positions = np.concatenate([[99], rng.integers(0, 5000, panel)]).astype(np.int32)
    kq = np.concatenate([np.zeros(7, np.float32), scores.ravel()])
    _transform(
        kq, 7, panel, n_keys, np.float32(scale), np.float32(softcap),
        slopes, 3, positions, 1, key,
    )  # fmt: skip
    exact = scores.astype(np.float64) * np.float32(scale)
    if softcap:
        exact = softcap * np.tanh(exact / softcap)
    distance = np.abs(positions[1:] - (key + np.arange(n_keys)[:, None]))
    bias = slopes[3:].astype(np.float64) * distance
    result = kq[7:].reshape(scores.shape)
    tolerance = 1e-6 * (np.abs(scores * scale) + np.abs(bias) + softcap)
    assert (np.abs(result - (exact - bias)) <= tolerance).all()


@kernel
def _add_mask_row(kq, start, panel, n_keys, mask, mask_key):
    softmax.add_mask_row(kq, start, panel, n_keys, mask, mask_key)


@pytest.mark.parametrize("mask_key", [1, 3, -2, 0])
def test_add_mask_row(rng, mask_key):
    """One lane of the panel, any stride of the mask; -inf wins over NaN."""
    panel, n_keys, lane = 16, 23, 5
    scores = random_scores(rng, n_keys, panel)
    scores[4, lane], scores[5, lane], scores[6, lane] = np.nan, np.inf, -np.inf
    memory = rng.standard_normal(200, np.float32)
    memory[rng.random(200) < 0.3] = -np.inf
    mask = np.lib.stride_tricks.as_strided(memory[100:], (n_keys,), (4 * mask_key,))
    kq = scores.ravel().copy()
    _add_mask_row(kq, lane, panel, n_keys, mask.__array_interface__["data"][0], mask_key)
    expected = scores.copy()
    expected[:, lane] = np.where(np.isneginf(mask), -np.inf, scores[:, lane] + mask)
    np.testing.assert_array_equal(kq.reshape(scores.shape), expected)


@kernel
def _leave_out(kq, start, panel, n_keys, lows, low, highs, high, key):
    softmax.leave_out(kq, start, panel, n_keys, lows, low, highs, high, key)


def test_leave_out(rng):
    """-inf outside ``low <= key < high``, whatever was there; inside nothing changes."""
    panel, n_keys, key = 32, 41, 2**30
    scores = random_scores(rng, n_keys, panel)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    lows, highs = (np.int32(key) + rng.integers(-5, 50, (2, panel + 9))).astype(np.int32)
    lows[4], highs[2] = 0, 2**31 - 1
    kq = np.concatenate([scores.ravel(), np.zeros(3, np.float32)])
    _leave_out(kq, 0, panel, n_keys, lows, 4, highs, 2, key)
    keys = key + np.arange(n_keys)[:, None]
    inside = (keys >= lows[4 : 4 + panel]) & (keys < highs[2 : 2 + panel])
    expected = np.where(inside, scores, np.float32(-np.inf))
    np.testing.assert_array_equal(kq[:-3].reshape(scores.shape), expected)
