"""The small operations of models on the CPU: against float64, at the edges, in threads, in memory."""

import tracemalloc

import ml_dtypes
import numpy as np
import ops_cases as exact
import ops_checks
import pytest
from numpy.lib.stride_tricks import as_strided

import lowlevel
from lowlevel import ops
from lowlevel.cpu.ops import frame

SHAPES = [(1, 1), (3, 15), (2, 16), (5, 67), (7, 1408), (3, 4, 128), (4, 2, 33)]


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(rng, shape):
    """Norm, gated activations, sums and multiples of rows."""
    ops_checks.rms_norm(rng, "cpu", shape)
    ops_checks.add_and_norm(rng, "cpu", shape)
    for kind in ("swiglu", "geglu", "clamped_swiglu"):
        ops_checks.gated(rng, "cpu", kind, shape)
    ops_checks.add(rng, "cpu", shape)
    ops_checks.scale(rng, "cpu", shape)


@pytest.mark.parametrize("target", ops_checks.DTYPES)
@pytest.mark.parametrize("source", ops_checks.DTYPES)
def test_cast(rng, source, target):
    for shape in ((3, 37), (2, 5, 64), (0, 8), (4, 0)):
        ops_checks.cast(rng, "cpu", shape, source, target)


@pytest.mark.parametrize("n", [1, 16, 37])
@pytest.mark.parametrize("source", ops_checks.DTYPES)
def test_gather(rng, source, n):
    ops_checks.gather(rng, "cpu", 11, n, 6, source)


@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 4, 64), (0, 16)], ids=str)
@pytest.mark.parametrize("target", ops_checks.DTYPES)
def test_put(rng, target, shape):
    ops_checks.put(rng, "cpu", shape, 11, target=target)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (24, 6, 37), (7, 3, 300), (0, 2, 5)], ids=str)
def test_scatter(rng, sizes):
    ops_checks.scatter(rng, "cpu", *sizes)


ROPES = {
    "plain": {},
    "scaled": dict(freq_base=500000.0, freq_scale=0.25),
    "yarn": dict(ext_factor=1.0, freq_scale=1 / 40, n_ctx_orig=4096, attn_factor=0.8),
    "partly": dict(
        ext_factor=0.5, freq_scale=1 / 32, n_ctx_orig=4096, beta_fast=16.0, beta_slow=2.0
    ),
    "factors": dict(freq_factors=0.5),  # made of the right length below
}


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("options", ROPES)
def test_rope(rng, pairs, options):
    for shape, n_rot in (((1, 1, 2), 2), ((3, 5, 64), 64), ((2, 3, 192), 64), ((2, 7, 90), 46)):
        given = dict(ROPES[options])
        if "freq_factors" in given:
            given["freq_factors"] = rng.uniform(0.5, 8, n_rot // 2)
        for offset in {0, shape[2] - n_rot}:
            ops_checks.rope(rng, "cpu", shape, n_rot, pairs, offset, **given)


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_rope_turns_any_strides_to_the_same_bits(rng, pairs):
    frequencies = ops.rope_frequencies(64)
    x = rng.standard_normal((3, 5, 70), np.float32)
    positions = np.arange(1000, 1005, dtype=np.int32)
    wanted = ops.rope(x.copy(), positions, frequencies, pairs=pairs, offset=6)
    for strided in (
        np.asfortranarray(x),
        np.repeat(x, 2, axis=2)[..., ::2],
        np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    ):
        ops.rope(strided, np.repeat(positions, 3)[::3], frequencies, pairs=pairs, offset=6)
        np.testing.assert_array_equal(strided, wanted)
    back = ops.rope(wanted, -positions, frequencies, pairs=pairs, offset=6)
    np.testing.assert_allclose(back, x, atol=2e-6)


def test_rope_loses_nothing_far_out(rng):
    """Whole turns drop out before anything is rounded: a position of 2**31 - 1 is as good as one of 3."""
    frequencies = ops.rope_frequencies(64)
    angle = np.float64(frequencies.turns) / 2**64
    x = np.zeros((1, 1, 64), np.float32)
    x[..., :32] = 1
    position = np.array([2**31 - 1], np.int32)
    ops.rope(x, position, frequencies, pairs="halves")
    turns = [int(t) * (2**31 - 1) % 2**64 / 2**64 for t in frequencies.turns]
    np.testing.assert_allclose(x[0, 0, :32], np.cos(2 * np.pi * np.array(turns)), atol=3e-7)
    assert 0 < angle.max() < 1


@pytest.mark.parametrize("gating", ops.GATINGS)
def test_routing(rng, gating):
    for n_expert, n_used, groups in (
        (1, 1, (1, 1)),
        (7, 2, (1, 1)),
        (60, 6, (1, 1)),
        (256, 8, (8, 4)),
        (1024, 32, (32, 3)),
    ):
        for biased in (False, True):
            ops_checks.routing(
                rng, "cpu", 5, n_expert, n_used, gating, groups,
                biased=biased, normalise=bool(rng.integers(2)), scale=float(rng.uniform(0.5, 3)),
            )  # fmt: skip


def routed(logits, n_used, **options):
    ids, weights = (
        np.zeros((len(logits), n_used), np.int32),
        np.zeros((len(logits), n_used), np.float32),
    )
    return ops.top_k_routing(np.asarray(logits, np.float32), ids, weights, **options)


@pytest.mark.parametrize("gating", ops.GATINGS)
def test_ties_go_to_the_lowest_index(rng, gating):
    logits = rng.integers(0, 3, (20, 48)).astype(np.float32)
    bias = np.zeros(48, np.float32)
    for options in ({}, {"bias": bias}, {"n_group": 6, "n_group_used": 2}):
        ids, _ = routed(logits, 6, gating=gating, **options)
        groups = options.get("n_group", 1), options.get("n_group_used", 1)
        wanted = [exact.selection(row.astype(np.float64), 6, *groups) for row in logits]
        if groups == (1, 1):
            np.testing.assert_array_equal(ids, wanted)
        else:  # sums of two scores: of integers exact for the logits themselves
            scores = exact.scores_of(logits, gating)
            np.testing.assert_array_equal(
                ids, [exact.selection(np.float32(s), 6, *groups) for s in scores]
            )


@pytest.mark.parametrize("gating", ops.GATINGS)
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_rows_of_nothing_finite_still_choose_different_experts(gating, value):
    ids, weights = routed(np.full((2, 20), value), 8, gating=gating)
    np.testing.assert_array_equal(ids, [range(8)] * 2)
    with np.errstate(all="ignore"):
        logits = np.full((2, 20), value)
        if not np.isinf(value) or "softmax" not in gating:
            wanted = exact.scores_of(logits[:, :8], gating)
            np.testing.assert_array_equal(weights, wanted)
        else:
            assert np.isnan(weights).all()


def test_small_sums_are_not_blown_up():
    _, weights = routed(np.full((1, 8), -30.0), 2, gating="sigmoid", normalise=True)
    np.testing.assert_allclose(weights, np.exp(-30.0) / 6.103515625e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e20])
def test_values_that_are_not_finite(value):
    """What the formulas give in float64, no more and no less; other rows know nothing of it."""
    x = np.linspace(-2, 2, 80, dtype=np.float32).reshape(2, 40)
    x[0, 7], x[0, 37] = value, 1
    up = np.full_like(x, 0.5)
    with np.errstate(all="ignore"):
        for kind in ("swiglu", "geglu", "clamped_swiglu"):
            out = getattr(ops, kind)(x, up, out=np.empty_like(x))
            wanted = getattr(exact, kind)(x, up)
            np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
        out = ops.rms_norm(x, out=np.empty_like(x))
        if abs(value) == 1e20:
            assert not out[0].any()  # beyond the squares' range: as the docstring says
        else:
            np.testing.assert_allclose(out[0], exact.rms_norm(x, None, 1e-6)[0], rtol=1e-5)
        np.testing.assert_allclose(out[1], exact.rms_norm(x, None, 1e-6)[1], rtol=1e-5)


def test_threads_change_no_bits(rng, monkeypatch):
    monkeypatch.setattr(frame, "THREAD_BYTES", 1)
    x, up = rng.standard_normal((2, 41, 300), np.float32)
    tokens = rng.integers(0, 9, 41).astype(np.int32)
    positions = np.arange(41, dtype=np.int32)
    frequencies = ops.rope_frequencies(100)

    def all_of_them(n):
        ids, weights = np.zeros((41, 4), np.int32), np.zeros((41, 4), np.float32)
        heads = x.reshape(41, 3, 100).transpose(1, 0, 2).copy()
        return [
            ops.rms_norm(x, up[0].copy(), out=np.empty_like(x), n_threads=n),
            ops.swiglu(x, up, out=np.empty_like(x), n_threads=n),
            ops.add(x, up, out=np.empty_like(x), n_threads=n),
            ops.scatter_add(x, np.ones((9, 300), np.float32), tokens=tokens, n_threads=n),
            ops.scatter_add(x, np.ones((41, 300), np.float32), n_threads=n),
            ops.gather_rows(up, tokens, np.empty_like(x), n_threads=n),
            ops.put_rows(up, positions[::-1], np.empty_like(x), n_threads=n),
            ops.rope(heads, positions, frequencies, n_threads=n),
            *ops.top_k_routing(x, ids, weights, n_threads=n),
        ]

    alone = all_of_them(1)
    for n in (2, 3, 7):
        for a, b in zip(alone, all_of_them(n), strict=True):
            np.testing.assert_array_equal(a, b)


def test_scatter_gives_the_same_bits_with_ids_and_in_order(rng):
    rows, weights = rng.standard_normal((40, 130), np.float32), rng.standard_normal(40, np.float32)
    start = rng.standard_normal((10, 130), np.float32)
    tokens = np.repeat(np.arange(10, dtype=np.int32), 4)
    in_order = ops.scatter_add(rows, start.copy(), weights=weights)
    np.testing.assert_array_equal(
        ops.scatter_add(rows, start.copy(), tokens=tokens, weights=weights), in_order
    )
    # Another order of tokens, the same of each token's rows.
    order = np.argsort(np.arange(40) % 4, kind="stable")
    shuffled = ops.scatter_add(
        rows[order], start.copy(), tokens=tokens[order], weights=weights[order]
    )
    np.testing.assert_array_equal(shuffled, in_order)


def test_nothing_is_allocated(rng):
    x = rng.standard_normal((2048, 512), np.float32)
    out, ids = np.empty_like(x), np.zeros(2048, np.int32)
    chosen, weights = np.empty((2048, 8), np.int32), np.empty((2048, 8), np.float32)
    heads, frequencies = x.reshape(2048, 4, 128).transpose(1, 0, 2), ops.rope_frequencies(128)
    half, positions = np.empty(x.shape, np.float16), np.arange(2048, dtype=np.int32)

    def all_of_them():
        ops.rms_norm(x, out=out)
        ops.swiglu(x, x, out=out)
        ops.add(x, out)
        ops.scale(x, 2.0)
        ops.cast(x, half)
        ops.rope(heads, ids, frequencies)
        ops.top_k_routing(x, chosen, weights)
        ops.gather_rows(x, ids, out)
        ops.put_rows(x, positions, half)
        ops.scatter_add(x, out, tokens=ids)

    all_of_them()
    tracemalloc.start()
    try:
        all_of_them()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


F4 = np.zeros((4, 32), np.float32)
IDS = np.zeros(4, np.int32)
ROPE = ops.rope_frequencies(16)
HEADS = np.zeros((2, 4, 16), np.float32)
CHOSEN, WEIGHTS = np.zeros((4, 2), np.int32), np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    "kind, text, call",
    [
        (TypeError, "x: expected a NumPy array", lambda: ops.rms_norm([1.0])),
        (TypeError, "x: expected float32 on cpu, got float64", lambda: ops.rms_norm(F4.astype("f8"))),
        (TypeError, "x: expected float32 on cpu", lambda: ops.rms_norm(F4.astype(np.float16))),
        (ValueError, r"x: expected rows.*got shape \(32,\)", lambda: ops.rms_norm(F4[0].copy())),
        (ValueError, "x: the last axis must be contiguous", lambda: ops.rms_norm(F4[:, ::2])),
        (ValueError, "out: shares memory with x", lambda: ops.rms_norm(F4[:, 1:], out=F4[:, :-1])),
        (ValueError, "out: strides", lambda: ops.rms_norm(F4, out=as_strided(F4.copy(), (4, 32), (0, 4)))),
        (ValueError, "weight: expected shape", lambda: ops.rms_norm(F4, np.zeros(31, np.float32))),
        (TypeError, "weight: expected float32", lambda: ops.rms_norm(F4, np.zeros(32))),
        (ValueError, "eps: expected a number that is finite in float32, at least 0", lambda: ops.rms_norm(F4, eps=-1)),
        (TypeError, "eps: expected a number", lambda: ops.rms_norm(F4, eps="1")),
        (TypeError, "n_threads", lambda: ops.rms_norm(F4, n_threads="2")),
        (ValueError, "add: expected shape", lambda: ops.rms_norm(F4, add=F4[:2], out=F4.copy())),
        (ValueError, "x: shares memory with add", lambda: ops.rms_norm(F4, add=F4, out=F4.copy())),
        (ValueError, "out: with add it must be given", lambda: ops.rms_norm(F4, add=F4.copy())),
        (ValueError, "out: shares memory with x", lambda: ops.rms_norm(F4, add=F4.copy(), out=F4)),
        (ValueError, r"up: expected shape \(4, 32\)", lambda: ops.swiglu(F4, F4[:3])),
        (ValueError, "limit", lambda: ops.clamped_swiglu(F4, F4, limit=-1.0)),
        (ValueError, "y: expected shape", lambda: ops.add(F4, F4[:2])),
        (IndexError, "row_ids: y has rows 0 to 1; got 3", lambda: ops.add(F4, F4[:2].copy(), row_ids=IDS + 3)),
        (TypeError, "row_ids: expected int32", lambda: ops.add(F4, F4.copy(), row_ids=IDS.astype(np.int64))),
        (TypeError, "x: expected float32 or float16 or bfloat16", lambda: ops.cast(IDS[None], F4)),
        (ValueError, "out: shares memory with x", lambda: ops.cast(F4, F4)),
        (ValueError, "n_rot: expected an even", lambda: ops.rope_frequencies(15)),
        (ValueError, "freq_base: expected more than 1", lambda: ops.rope_frequencies(16, freq_base=1.0)),
        (ValueError, "n_ctx_orig", lambda: ops.rope_frequencies(16, ext_factor=1.0)),
        (ValueError, "freq_factors: expected shape", lambda: ops.rope_frequencies(16, freq_factors=[1.0])),
        (ValueError, "x: expected .n_head, n_tokens, d.", lambda: ops.rope(F4, IDS, ROPE)),
        (ValueError, "positions: expected shape", lambda: ops.rope(HEADS, IDS[:3], ROPE)),
        (TypeError, "positions: expected int32", lambda: ops.rope(HEADS, IDS.astype(np.int64), ROPE)),
        (TypeError, "frequencies: expected what", lambda: ops.rope(HEADS, IDS, 10000.0)),
        (ValueError, "pairs: expected", lambda: ops.rope(HEADS, IDS, ROPE, pairs="neox")),
        (ValueError, "offset: expected an int, 0 to 0", lambda: ops.rope(HEADS, IDS, ROPE, offset=2)),
        (ValueError, "16 dimensions are to be turned", lambda: ops.rope(HEADS[..., :8], IDS, ROPE)),
        (ValueError, "ids: experts used: expected an int, 1 to 8", lambda: ops.top_k_routing(F4[:, :8], np.zeros((4, 9), np.int32), WEIGHTS)),
        (ValueError, "n_group: 32 experts do not make 5", lambda: ops.top_k_routing(F4, CHOSEN, WEIGHTS, n_group=5)),
        (ValueError, "gating: expected .softmax. or", lambda: ops.top_k_routing(F4, CHOSEN, WEIGHTS, gating="top")),
        (ValueError, "weights: expected shape", lambda: ops.top_k_routing(F4, CHOSEN, WEIGHTS[:3])),
        (TypeError, "normalise: expected True or False", lambda: ops.top_k_routing(F4, CHOSEN, WEIGHTS, normalise=1)),
        (IndexError, "ids: table has rows 0 to 1; got -1", lambda: ops.gather_rows(F4[:2].copy(), IDS - 1, F4)),
        (IndexError, "ids: out has rows 0 to 1; got 2", lambda: ops.put_rows(F4, IDS + 2, F4[:2].copy())),
        (ValueError, "ids: expected shape", lambda: ops.put_rows(F4, IDS[:3], F4.copy())),
        (ValueError, r"out: expected shape \(4, 32\)", lambda: ops.put_rows(F4, IDS, F4[None].copy())),
        (ValueError, "tokens: 4 rows do not make 3", lambda: ops.scatter_add(F4, F4[:3].copy())),
        (IndexError, "tokens: out has rows 0 to 1; got 7", lambda: ops.scatter_add(F4, F4[:2].copy(), tokens=IDS + 7)),
        (TypeError, "pool: expected", lambda: ops.scatter_add(F4, F4.copy(), pool="1MiB")),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(kind, text, call):
    with pytest.raises(kind, match=text):
        call()
    for array in (F4, IDS, HEADS, CHOSEN, WEIGHTS):
        assert not array.any()


def test_read_only_results_are_refused():
    frozen = F4.copy()
    frozen.flags.writeable = False
    for call in (
        lambda: ops.rms_norm(frozen),
        lambda: ops.rms_norm(frozen, add=F4, out=F4.copy()),
        lambda: ops.scale(frozen, 2.0),
        lambda: ops.cast(F4, frozen),
        lambda: ops.scatter_add(F4, frozen),
    ):
        with pytest.raises(ValueError, match="read-only"):
            call()


def test_the_plan_of_a_scatter_on_the_cpu_takes_nothing():
    plan = ops.plan_scatter_add(100, 10)
    assert plan.scratch_bytes == 0
    assert plan.to_dict() == {
        "path": "by token", "device": "cpu", "n_rows": 100, "n_tokens": 10, "in_order": False, "scratch": [], "scratch_bytes": 0,
    }  # fmt: skip
    with lowlevel.Pool("1MiB") as pool:
        ops.scatter_add(F4, F4.copy(), tokens=IDS, pool=pool)
        assert pool.peak == 0


def test_bfloat16_tables_without_a_copy(rng):
    table = rng.standard_normal((5, 24)).astype(ml_dtypes.bfloat16)
    out = ops.gather_rows(table, np.array([4, 0], np.int32), np.empty((2, 24), np.float32))
    np.testing.assert_array_equal(out, table[[4, 0]].astype(np.float32))


def test_rows_by_expert_are_a_stable_sort():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 6, (11, 3)).astype(np.int32)
    weights = rng.random((11, 3), np.float32)
    tokens, experts = np.empty(33, np.int32), np.empty(33, np.int32)
    row_weights = np.empty((33, 1), np.float32)[:, 0]
    ops.sort_by_expert(ids, weights, tokens, experts, row_weights)
    choices = [(ids[i, j], i, weights[i, j]) for i in range(11) for j in range(3)]
    choices.sort(key=lambda choice: choice[:1])
    assert [(e, t, w) for e, t, w in zip(experts, tokens, row_weights, strict=True)] == choices
    with pytest.raises(ValueError, match="tokens"):
        ops.sort_by_expert(ids, weights, tokens[:5], experts, row_weights)
    with pytest.raises(TypeError, match="weights"):
        ops.sort_by_expert(ids, weights.astype("f8"), tokens, experts, row_weights)
