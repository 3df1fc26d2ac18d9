"""The small operations of models on a device: every kernel against float64, the CPU's bits, plans, and no waiting."""

import functools

import numpy as np
import ops_cases as exact
import ops_checks
import pytest

import lowlevel
from lowlevel import asarray, asnumpy, devices, ops
from lowlevel.gpu.instances import CAST, OPERATIONS
from lowlevel.gpu.ops import rope as rope_launcher
from lowlevel.pool.arena import align_up

KERNELS = (*OPERATIONS, *CAST.values())
PAIRS = [(source, target) for source in ops_checks.DTYPES for target in ops_checks.DTYPES]
SHAPES = [(1, 1), (3, 15), (5, 72), (3, 4, 40)]


@pytest.mark.parametrize("source, target", PAIRS)
def test_rows(rng, device, source, target):
    for shape in SHAPES:
        ops_checks.rms_norm(rng, device, shape, source, target)
        for other in ops_checks.DTYPES:
            ops_checks.add_and_norm(rng, device, shape, source, other, target)
        ops_checks.add(rng, device, shape, source, target)
        for kind in ("swiglu", "geglu", "clamped_swiglu"):
            ops_checks.gated(rng, device, kind, shape, source, target)
        ops_checks.cast(rng, device, shape, source, target)


def test_every_kernel_is_launched(rng, device, launched):
    """Each of the table, by the calls of this file."""
    for source, target in PAIRS:
        ops_checks.rms_norm(rng, device, (2, 8), source, target)
        ops_checks.add(rng, device, (2, 8), source, target)
        ops_checks.gated(rng, device, "swiglu", (2, 8), source, target)
        ops_checks.gather(rng, device, 3, 8, 2, source, target)
        ops_checks.put(rng, device, (2, 8), 3, source, target)
        ops_checks.scatter(rng, device, 4, 2, 8, source, target)
        if source != target:
            ops_checks.cast(rng, device, (2, 8), source, target)
    for dtype in ops_checks.DTYPES:
        ops_checks.scale(rng, device, (2, 8), dtype)
        ops_checks.rope(rng, device, (1, 2, 8), 8, "halves", dtype=dtype)
        ops_checks.routing(rng, device, 2, 8, 2, "softmax", dtype=dtype)
    assert set(launched) >= set(KERNELS)


def test_long_rows_are_shared_by_a_block(rng, device):
    for columns in (1025, 4096, 12345):  # the last: more than threads keep in registers
        ops_checks.rms_norm(rng, device, (2, columns))
        ops_checks.add_and_norm(rng, device, (2, columns), other="float16")


@pytest.mark.parametrize("dtype", ops_checks.DTYPES)
def test_scale(rng, device, dtype):
    for shape in SHAPES:
        ops_checks.scale(rng, device, shape, dtype)


@pytest.mark.parametrize("source, target", PAIRS)
def test_rows_by_index(rng, device, source, target):
    for sizes in ((1, 1, 1), (11, 37, 6), (9, 64, 5)):
        ops_checks.gather(rng, device, *sizes, source, target)
    for shape in ((1, 1), (5, 37), (3, 4, 64)):
        ops_checks.put(rng, device, shape, 11, source, target)
    for sizes in ((1, 1, 1), (24, 6, 40), (7, 3, 33)):
        ops_checks.scatter(rng, device, *sizes, source, target)


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("dtype", ops_checks.DTYPES)
def test_rope(rng, device, dtype, pairs, monkeypatch):
    yarn = dict(ext_factor=1.0, freq_scale=1 / 40, n_ctx_orig=4096)
    for shape, n_rot, options in (
        ((1, 1, 2), 2, {}),
        ((3, 5, 64), 64, yarn),
        ((5, 2, 90), 46, yarn),
    ):
        for offset in {0, shape[2] - n_rot}:
            ops_checks.rope(rng, device, shape, n_rot, pairs, offset, dtype, **options)
    monkeypatch.setattr(
        rope_launcher, "_ENOUGH_BLOCKS", 0
    )  # four heads a thread, as in long prompts
    ops_checks.rope(rng, device, (6, 3, 64), 64, pairs, 0, dtype)


@pytest.mark.parametrize("dtype", ops_checks.DTYPES)
@pytest.mark.parametrize("gating", ops.GATINGS)
def test_routing(rng, device, gating, dtype):
    for n_expert, n_used, groups in (
        (1, 1, (1, 1)),
        (60, 6, (1, 1)),
        (256, 8, (8, 4)),
        (1024, 32, (32, 3)),
    ):
        for biased in (False, True):
            ops_checks.routing(
                rng, device, 5, n_expert, n_used, gating, groups, dtype,
                biased=biased, normalise=biased, scale=2.5,
            )  # fmt: skip


@pytest.mark.parametrize("gating", ops.GATINGS)
def test_ties_and_what_is_not_finite(rng, device, gating):
    """The lowest index wins, in groups too; ids are different experts whatever comes."""
    logits = rng.integers(0, 3, (12, 48)).astype(np.float32)
    logits[10], logits[11] = np.nan, -np.inf
    ids, weights = np.zeros((12, 6), np.int32), np.zeros((12, 6), np.float32)
    bias = np.zeros(48, np.float32)
    for options in ({}, {"bias": bias}, {"n_group": 6, "n_group_used": 2}):
        on_device = {k: asarray(v, device) if v is bias else v for k, v in options.items()}
        result = ops.top_k_routing(
            asarray(logits, device), asarray(ids, device), asarray(weights, device), gating=gating, **on_device
        )  # fmt: skip
        groups = options.get("n_group", 1), options.get("n_group_used", 1)
        wanted = ops.top_k_routing(logits, ids.copy(), weights.copy(), gating=gating, **options)
        with np.errstate(all="ignore"):
            scores = np.float32(exact.scores_of(logits, gating))
        best = [exact.selection(row, 6, *groups) for row in scores]
        chosen = asnumpy(result[0])
        np.testing.assert_array_equal(chosen, best)
        np.testing.assert_array_equal(chosen, wanted[0])
        np.testing.assert_allclose(asnumpy(result[1]), wanted[1], rtol=1e-5, atol=1e-18)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e20])
def test_values_that_are_not_finite(device, value):
    """As on the CPU."""
    x = np.linspace(-2, 2, 80, dtype=np.float32).reshape(2, 40)
    x[0, 7], x[0, 37] = value, 1
    up = np.full_like(x, 0.5)
    for kind in ("swiglu", "geglu", "clamped_swiglu"):
        result = getattr(ops, kind)(asarray(x.copy(), device), asarray(up, device))
        np.testing.assert_allclose(
            asnumpy(result), getattr(ops, kind)(x.copy(), up), rtol=1e-5, atol=1e-6
        )
    result = ops.rms_norm(asarray(x.copy(), device))
    np.testing.assert_allclose(asnumpy(result), ops.rms_norm(x.copy()), rtol=1e-5)


def test_rope_and_scatter_give_the_bits_of_the_cpu(rng, device):
    x = rng.standard_normal((3, 40, 70), np.float32)
    positions = rng.integers(0, 2**31, 40).astype(np.int32)
    frequencies = ops.rope_frequencies(64, ext_factor=1.0, freq_scale=0.1, n_ctx_orig=4096)
    for pairs in ("adjacent", "halves"):
        turned = ops.rope(
            asarray(x.copy(), device), asarray(positions, device), frequencies.to(device), pairs=pairs, offset=6
        )  # fmt: skip
        wanted = ops.rope(x.copy(), positions, frequencies, pairs=pairs, offset=6)
        np.testing.assert_array_equal(asnumpy(turned), wanted)
    rows, out = rng.standard_normal((300, 70), np.float32), rng.standard_normal((7, 70), np.float32)
    tokens, weights = rng.integers(0, 7, 300).astype(np.int32), rng.standard_normal(300, np.float32)
    arrays = (asarray(array.copy(), device) for array in (rows, out, tokens, weights))
    result = ops.scatter_add(*(a := list(arrays))[:2], tokens=a[2], weights=a[3])
    wanted = ops.scatter_add(rows, out.copy(), tokens=tokens, weights=weights)
    np.testing.assert_array_equal(asnumpy(result), wanted)


@pytest.mark.parametrize("n_rows, n_tokens", [(300, 7), (5, 600), (1, 1)])
def test_a_scatter_takes_what_its_plan_says(rng, device, n_rows, n_tokens):
    plan = ops.plan_scatter_add(n_rows, n_tokens, device=device)
    assert plan.scratch_bytes == align_up(4 * n_rows) + align_up(4 * (n_tokens + 1))
    with lowlevel.Pool(plan.scratch_bytes, device) as pool:
        ops_checks.scatter(rng, device, n_rows, n_tokens, 9, pool=pool)
        assert pool.peak == plan.scratch_bytes and pool.used == 0
    rows, out = (
        asarray(np.ones((n_rows, 9), np.float32), device),
        np.ones((n_tokens, 9), np.float32),
    )
    tokens, start = asarray(np.zeros(n_rows, np.int32), device), asarray(out.copy(), device)
    with lowlevel.Pool(plan.scratch_bytes - 256, device) as pool:
        with pytest.raises(lowlevel.BudgetError):
            ops.scatter_add(rows, start, tokens=tokens, pool=pool)
    np.testing.assert_array_equal(asnumpy(start), out)


def test_ids_that_are_not_there(device):
    """The host does not look at ids: NaN, or nothing, is what they give."""
    table, ids = np.ones((3, 16), np.float32), np.array([1, -1, 3], np.int32)
    bad = [False, True, True]
    on = functools.partial(asarray, device=device)
    out = ops.gather_rows(on(table.copy()), on(ids), on(np.zeros((3, 16), np.float32)))
    np.testing.assert_array_equal(np.isnan(asnumpy(out)).all(1), bad)
    added = ops.add(on(np.zeros((3, 16), np.float32)), on(table.copy()), row_ids=on(ids))
    np.testing.assert_array_equal(np.isnan(asnumpy(added)).all(1), bad)
    kept = ops.put_rows(on(table.copy()), on(ids), on(np.zeros((3, 16), np.float32)))
    np.testing.assert_array_equal(asnumpy(kept), np.float32([[0], [1], [0]]) * np.ones((3, 16)))
    total = ops.scatter_add(on(table.copy()), on(np.zeros((3, 16), np.float32)), tokens=on(ids))
    np.testing.assert_array_equal(asnumpy(total), np.float32([[0], [1], [0]]) * np.ones((3, 16)))


def test_no_call_waits_allocates_or_reads(rng, device, monkeypatch):
    """Nothing but launches: what a CUDA graph can hold."""
    where = devices.get(device)
    x, y, out = (asarray(rng.standard_normal((8, 64), np.float32), device) for _ in range(3))
    half = asarray(np.zeros((8, 64), np.float16), device)
    ids = asarray(np.arange(8, dtype=np.int32), device)
    chosen, weights = (asarray(np.zeros((8, 4), kind), device) for kind in (np.int32, np.float32))
    frequencies = ops.rope_frequencies(32).to(device)
    heads = x.reshape(8, 2, 32).transpose(1, 0, 2)
    pool = lowlevel.Pool("64KiB", device)

    def refused(*arguments):
        raise AssertionError("not just a launch")

    for name in ("synchronise", "to_host", "from_host", "upload", "allocate", "empty"):
        monkeypatch.setattr(where, name, refused, raising=True)
    ops.rms_norm(x, y[0], out=out)
    ops.rms_norm(x, y[0], add=half, out=out)
    ops.swiglu(out, y)
    ops.add(x, out, row_ids=ids)
    ops.scale(x, 0.5)
    ops.cast(x, half)
    ops.rope(heads, ids, frequencies)
    ops.top_k_routing(x, chosen, weights)
    ops.gather_rows(x, ids, half)
    ops.put_rows(x, ids, half)
    ops.scatter_add(x, out, tokens=ids, pool=pool)
    ops.scatter_add(x, out)
    monkeypatch.undo()
    pool.close()


def test_what_does_not_fit_is_refused(device):
    x = asarray(np.zeros((4, 32), np.float32), device)
    host = np.zeros((4, 32), np.float32)
    assert devices.get(device).activations == tuple(ops_checks.DTYPES)
    for kind, text, call in (
        (ValueError, "n_threads: .* has no use for it", lambda: ops.rms_norm(x, n_threads=2)),
        (TypeError, "out: lies on cpu", lambda: ops.rms_norm(x, out=host)),
        (TypeError, "x: expected float32 or float16 or bfloat16", lambda: ops.rms_norm(asarray(np.zeros((4, 32)), device))),
        (TypeError, "positions: lies on cpu", lambda: ops.rope(x[None], np.zeros(4, np.int32), ops.rope_frequencies(32))),
        (TypeError, "frequencies: lies on cpu", lambda: ops.rope(x[None], asarray(np.zeros(4, np.int32), device), ops.rope_frequencies(32))),
        (TypeError, "pool: expected", lambda: ops.scatter_add(x, asarray(host.copy(), device), pool=lowlevel.Pool(1024))),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            call()


def test_order_of_threads_does_not_matter(rng, order):
    ops_checks.rms_norm(rng, "cudasim", (3, 1500))
    ops_checks.add_and_norm(rng, "cudasim", (3, 1500))
    ops_checks.scatter(rng, "cudasim", 30, 4, 20)
    ops_checks.routing(rng, "cudasim", 5, 64, 4, "softmax", (4, 2))
