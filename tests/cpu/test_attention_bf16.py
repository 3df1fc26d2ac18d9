"""``precision="bf16"``: operands rounded to bfloat16, everything else as exact as in float32.

With operands that are bfloat16 already, only the softmax's weights are rounded: each by at most
2**-8 of itself, so no output is further off than that part of its sum over |v|.
"""

import subprocess
import sys

import numpy as np
import pytest
from attention_cases import random_case
from lesser_cpus import CPUS

import lowlevel
import quant
from lowlevel.attention.reference import attention_float64, scaled_error
from lowlevel.cpu import bfloat, layout

needs_bf16 = pytest.mark.skipif(not bfloat.AVAILABLE, reason="this CPU lacks AVX512_BF16")

HALF_STEP = 2.0**-8
# What float32 leaves: see FLOAT32_BOUND, with options that widen the scores.
REST = 2e-5


def rounded(x):
    """The nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), np.float32("nan"), bits.astype(np.uint32).view(np.float32))


def assert_weights_alone_are_rounded(out, q, k, v, what="", **options):
    expected = attention_float64(q, k, v, **options)
    finite = np.where(np.isfinite(v), np.abs(v), 0)
    allowed = HALF_STEP * attention_float64(q, k, finite, **options)
    allowed += REST * np.abs(expected).max(initial=1e-30)
    wrong = ~(np.abs(out - expected) <= allowed)
    assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.size}, first {np.argwhere(wrong)[0]}"


def rounded_case(rng):
    case = random_case(rng)
    case.q, case.k, case.v = rounded(case.q), rounded(case.k), rounded(case.v)
    return case


@needs_bf16
@pytest.mark.parametrize("seed", range(10))
def test_random_calls_in_random_budgets(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        case = rounded_case(rng)
        n_threads = int(rng.integers(1, 4))
        free = lowlevel.plan_attention(**case.sizes, n_threads=n_threads, precision="bf16")
        budget = int(rng.integers(free.scratch_bytes // 2, free.scratch_bytes + 1))
        try:
            plan = lowlevel.plan_attention(
                **case.sizes, n_threads=n_threads, budget=budget, precision="bf16"
            )
        except lowlevel.BudgetError:
            plan = free
        with lowlevel.Pool(plan.scratch_bytes) as pool:
            out, lse = lowlevel.attention(
                case.q, case.k, case.v, pool=pool, plan=plan, precision="bf16", return_lse=True,
                **case.options,
            )  # fmt: skip
            assert pool.peak == plan.scratch_bytes
        what = f"{case} seed {seed} {plan}"
        assert_weights_alone_are_rounded(out, case.q, case.k, case.v, what, **case.options)
        _, exact = attention_float64(case.q, case.k, case.v, return_lse=True, **case.options)
        np.testing.assert_allclose(lse, exact, rtol=1e-5, atol=1e-5, err_msg=what)


@needs_bf16
def test_operands_are_rounded_to_nearest_even():
    """As if the caller had rounded them; ties and values next to them too."""
    rng = np.random.default_rng(0)
    ties = np.float32(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23, 1 + 2**-8 - 2**-23, -1 - 2**-8]
    )
    q, k, v = (
        np.where(rng.random(shape) < 0.5, rng.choice(ties, shape), rng.standard_normal(shape))
        .astype(np.float32)
        for shape in ((2, 40, 72), (2, 333, 72), (2, 333, 40))
    )  # fmt: skip
    assert not np.array_equal(rounded(v), v)
    of_plain = lowlevel.attention(q, k, v, precision="bf16")
    of_rounded = lowlevel.attention(rounded(q), rounded(k), rounded(v), precision="bf16")
    assert np.array_equal(of_plain, of_rounded)
    assert not np.array_equal(of_plain, lowlevel.attention(q, k, v))


@needs_bf16
@pytest.mark.parametrize("sizes", [(4, 300, 1500, 192, 128), (2, 64, 700, 64, 64)])
def test_error_on_normal_data(sizes):
    """What the documentation says of it."""
    n_head, n_tokens, n_kv, d_k, d_v = sizes
    rng = np.random.default_rng(1)
    q = rng.standard_normal((n_head, n_tokens, d_k), dtype=np.float32)
    k = rng.standard_normal((n_head, n_kv, d_k), dtype=np.float32)
    v = rng.standard_normal((n_head, n_kv, d_v), dtype=np.float32)
    expected = attention_float64(q, k, v)
    out = lowlevel.attention(q, k, v, precision="bf16")
    assert 1e-4 < scaled_error(out, expected) < 1e-2
    assert np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2)) < 5e-3


@needs_bf16
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unused_cache_slots_may_hold_anything(bad):
    """Also where the last key a row sees shares a pair with one that it does not."""
    rng = np.random.default_rng(2)
    for n_kv, used in ((64, 33), (401, 301), (700, 255), (90, 90)):
        case = rounded_case(rng)
        q = rounded(rng.standard_normal((2, 40, 48)))
        k, v = (rounded(rng.standard_normal((2, n_kv, d))) for d in (48, 24))
        mask = np.zeros((40, n_kv), np.float32)
        mask[:, used:] = -np.inf
        k[:, used:] = v[:, used:] = bad
        for options in (
            dict(mask=mask),
            dict(mask=mask, causal=False, sinks=case.q[0, 0, :1][[0, 0]]),
        ):
            out = lowlevel.attention(q, k, v, precision="bf16", **options)
            assert_weights_alone_are_rounded(out, q, k, v, f"{n_kv} {used}", **options)
    # no mask: all rows of one token end at the same key, an odd one
    q = rounded(rng.standard_normal((32, 3, 16)))
    k, v = (rounded(rng.standard_normal((1, 99, d))) for d in (16, 16))
    k[:, 97:] = v[:, 97:] = bad
    out = lowlevel.attention(q, k, v, precision="bf16")
    assert_weights_alone_are_rounded(out[:, :1], q[:, :1], k[:, :97], v[:, :97])
    assert not np.isfinite(out[:, 1:]).all()


@needs_bf16
@pytest.mark.parametrize("name", ["k", "v"])
def test_nan_that_is_attended_to_shows(name):
    rng = np.random.default_rng(3)
    operands = dict(
        q=rng.standard_normal((2, 40, 32)), k=rng.standard_normal((2, 80, 32)), v=rng.standard_normal((2, 80, 32))
    )  # fmt: skip
    operands = {key: x.astype(np.float32) for key, x in operands.items()}
    operands[name][:, 60] = np.nan
    out = lowlevel.attention(**operands, precision="bf16")
    position = np.arange(40, 80)
    assert np.isnan(out[:, position >= 60]).all() and np.isfinite(out[:, position < 60]).all()


@needs_bf16
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "Q8_0"])
def test_other_k_and_v(kind):
    rng = np.random.default_rng(4)
    q = rounded(rng.standard_normal((4, 70, 64)))
    k, v = (rng.standard_normal((2, 300, d)).astype(np.float32) for d in (64, 96))
    if kind == "Q8_0":
        k, v = quant.quantize(k, kind), quant.quantize(v, kind)
        floats = quant.dequantize(k), quant.dequantize(v)
    elif kind == "float16":
        k, v = k.astype(kind), v.astype(kind)
        floats = k, v
    else:
        kind = pytest.importorskip("ml_dtypes").bfloat16
        k, v = k.astype(kind), v.astype(kind)
        floats = k, v
    out = lowlevel.attention(q, k, v, precision="bf16")
    assert_weights_alone_are_rounded(out, q, *map(rounded, map(np.float32, floats)))


@needs_bf16
@pytest.mark.parametrize("column", [0, 64])
def test_latent_v_is_decoded_apart(column):
    rng = np.random.default_rng(5)
    q = rounded(rng.standard_normal((16, 40, 96)))
    k = rounded(rng.standard_normal((1, 200, 96)))
    v = k[:, :, column : column + 32]
    sizes = dict(n_head=16, n_head_kv=1, n_tokens=40, n_kv=200, d_k=96, d_v=32)
    plan = lowlevel.plan_attention(**sizes, precision="bf16")
    assert plan.path == "panels bf16"
    with lowlevel.Pool("8MiB") as pool:
        out = lowlevel.attention(q, k, v, precision="bf16", pool=pool, plan=plan)
        assert pool.peak == plan.scratch_bytes
    assert_weights_alone_are_rounded(out, q, k, v)
    with pytest.raises(ValueError, match="v_in_k"):
        latent = lowlevel.plan_attention(**sizes, v_in_k=True, precision="bf16")
        lowlevel.attention(q, k, v, precision="bf16", plan=latent)


def test_few_rows_are_float32():
    rng = np.random.default_rng(6)
    q = rng.standard_normal((layout.FEW_ROWS, 1, 64), dtype=np.float32)
    k, v = (rng.standard_normal((1, 500, 64), dtype=np.float32) for _ in range(2))
    out = lowlevel.attention(q, k, v, precision="bf16")
    assert np.array_equal(out, lowlevel.attention(q, k, v))


_WITHOUT = """
import numpy as np, lowlevel
from lowlevel.cpu import bfloat
assert not bfloat.AVAILABLE
q, k, v = (np.random.default_rng(0).standard_normal((2, 40, 32), dtype=np.float32) for _ in range(3))
assert np.array_equal(lowlevel.attention(q, k, v, precision="bf16"), lowlevel.attention(q, k, v))
"""


def test_a_cpu_without_it_computes_in_float32():
    import os

    environment = {**os.environ, **CPUS["portable"].environment}
    subprocess.run([sys.executable, "-c", _WITHOUT], env=environment, check=True, timeout=300)


def test_what_it_does_not_go_with():
    q = np.ones((1, 4, 8), np.float32)
    with pytest.raises(ValueError, match="precision"):
        lowlevel.attention(q, q, q, precision="float16")
    with pytest.raises(ValueError, match="method"):
        lowlevel.attention(q, q, q, precision="bf16", method="steps")
    plan = lowlevel.plan_attention(n_head=1, n_tokens=4, n_kv=4, d_k=8, d_v=8, method="steps")
    with pytest.raises(ValueError, match=r"plan: made for another call: .*precision"):
        lowlevel.attention(q, q, q, precision="bf16", plan=plan)
    on_device = lowlevel.asarray(q, "cudasim")
    with pytest.raises(ValueError, match="bfloat16"):
        lowlevel.attention(on_device, on_device, on_device, precision="bf16")
