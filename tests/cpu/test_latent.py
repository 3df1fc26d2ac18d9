"""MLA's latents as K and V on the CPU: decompressed chunk by chunk, in scratch planned to the byte."""

import numpy as np
import pytest
from attention_cases import FLOAT32_BOUND
from comparison import assert_close
from latent_cases import latent_case, random_weights

import lowlevel
import quant
from lowlevel import BudgetError, devices
from lowlevel.attention.reference import attention_float64


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def plan_of(q, kv, **more):
    return lowlevel.plan_attention(
        n_head=q.shape[0], n_tokens=q.shape[1], n_kv=kv.k.shape[1], d_k=kv.k.shape[2],
        d_v=kv.v.shape[2], kv_dtype=(kv.k.type, kv.v.type), **more,
    )  # fmt: skip


def decompressed(source):
    """All of a source at once, by its reader."""
    n_head, n_kv, d = source.shape
    out = np.empty((n_head, n_kv, -(-d // 32) * 32), np.float32)
    scratch = np.empty(source.type.scratch_bytes("cpu", n_head, n_kv) // 4, np.float32)
    source.reader(devices.get("cpu"), slice(0, n_head), scratch)(slice(0, n_kv), out[..., :d])
    return np.ascontiguousarray(out[..., :d])


@pytest.mark.parametrize("k_transposed", [False, True])
@pytest.mark.parametrize("name", ["F16", "IQ4_NL", "Q2_K"])
def test_a_reader_decompresses(rng, name, k_transposed):
    columns = 256 if name == "Q2_K" else 32
    sizes = dict(rank=256 if name == "Q2_K" else 64, d_nope=columns, n_kv=int(rng.integers(1, 90)))
    case = latent_case(rng, name, **sizes, k_transposed=k_transposed)
    for source, expected in ((case.kv.k, case.k), (case.kv.v, case.v)):
        assert_close(decompressed(source).astype(np.float64), expected, 2e-6)


@pytest.mark.parametrize("k_transposed", [False, True])
@pytest.mark.parametrize("name", ["F16", "IQ4_NL"])
def test_attention_over_latents(rng, name, k_transposed):
    """In every budget from the best plan's down to the smallest, with options, as over decompressed K and V."""
    case = latent_case(rng, name, n_kv=int(rng.integers(200, 400)), k_transposed=k_transposed)
    q = rng.standard_normal((4, int(rng.integers(1, 50)), 48), dtype=np.float32)
    options = [{}, {"window": 100}, {"causal": False, "softcap": 5.0}]
    options[1]["sinks"] = rng.standard_normal(4).astype(np.float32)
    for option in options:
        expected = attention_float64(q, case.k, case.v, return_lse=True, **option)
        budget, shapes = None, set()
        while True:
            try:
                plan = plan_of(q, case.kv, budget=budget)
            except BudgetError:
                break
            shapes.add((plan.pass_heads, plan.pass_rows, plan.pass_keys, plan.rows, plan.keys))
            with lowlevel.Pool(plan.scratch_bytes) as pool:
                out, lse = lowlevel.attention(
                    q, case.kv.k, case.kv.v, pool=pool, plan=plan, return_lse=True, **option
                )
                assert pool.peak == plan.scratch_bytes
            assert_close(out.astype(np.float64), expected[0], FLOAT32_BOUND, f"{plan} {option}")
            assert_close(lse.astype(np.float64), expected[1], FLOAT32_BOUND, f"{plan} {option}")
            budget = plan.scratch_bytes - 1
        assert len(shapes) > 3


def test_the_same_bits_as_over_decompressed_keys(rng):
    """As long as a chunk holds whole tiles of keys: the walk is that of dense K and V."""
    case = latent_case(rng, "IQ4_NL", n_kv=3000)
    k, v = (decompressed(source) for source in (case.kv.k, case.kv.v))
    q = rng.standard_normal((4, 40, 48), dtype=np.float32)
    dense = lowlevel.attention(q, k, v, n_threads=2)
    plan = plan_of(q, case.kv, n_threads=2)
    assert plan.pass_keys < 3000 and plan.pass_keys % plan.keys == 0
    assert np.array_equal(lowlevel.attention(q, case.kv.k, case.kv.v, plan=plan), dense)


def test_more_rows_than_a_pass_takes(rng):
    """Small budgets cut tokens, too; causal rows of other passes see other keys."""
    case = latent_case(rng, "F16", n_head=2, n_kv=700)
    q = rng.standard_normal((2, 600, 48), dtype=np.float32)
    expected = attention_float64(q, case.k, case.v)
    plan = plan_of(q, case.kv, budget="300KiB")
    assert plan.pass_rows < 600
    out = np.empty((600, 2, 32), np.float32).transpose(1, 0, 2)
    lowlevel.attention(q, case.kv.k, case.kv.v, plan=plan, out=out)
    assert_close(out.astype(np.float64), expected, FLOAT32_BOUND)


def test_quantised_latents(rng):
    """A cache of 32-weight blocks: c_kv and k_pe are ranges of its columns."""
    n_kv, rank, d_rope = 150, 64, 32
    cache = rng.standard_normal((n_kv, rank + d_rope), dtype=np.float32)
    t = quant.quantize(cache, "Q8_0")
    cut = rank // 32 * 34
    c_kv = quant.QuantTensor(t.data[:, :cut], "Q8_0", (n_kv, rank))
    k_pe = quant.QuantTensor(t.data[:, cut:], "Q8_0", (n_kv, d_rope))
    wk_b, wv_b = (random_weights(rng, "F16", (3, 32, rank)) for _ in range(2))
    kv = quant.LatentKV(c_kv, k_pe, wk_b, wv_b)
    q = rng.standard_normal((3, 20, 64), dtype=np.float32)
    values = quant.dequantize(t)
    plain = quant.LatentKV(values[:, :rank].copy(), values[:, rank:].copy(), wk_b, wv_b)
    assert np.array_equal(
        lowlevel.attention(q, kv.k, kv.v), lowlevel.attention(q, plain.k, plain.v)
    )


def test_steps_decompress_too(rng):
    case = latent_case(rng, "IQ4_NL", n_kv=600)
    q = rng.standard_normal((4, 30, 48), dtype=np.float32)
    plan = plan_of(q, case.kv, method="steps")
    with lowlevel.Pool(plan.scratch_bytes) as pool:
        out = lowlevel.attention(q, case.kv.k, case.kv.v, plan=plan, pool=pool)
        assert pool.peak == plan.scratch_bytes
    assert_close(out.astype(np.float64), attention_float64(q, case.k, case.v), 2e-5)


@pytest.mark.parametrize("name", ["F16", "IQ4_NL"])
def test_163840_keys_within_64_mebibytes(rng, name):
    """R1's head sizes, all its heads in the plan and two of them run; latents repeat by a stride of zero."""
    n_kv, rank = 163840, 512
    c_kv = np.broadcast_to(rng.standard_normal((1, rank)).astype("f2"), (n_kv, rank))
    k_pe = np.broadcast_to(rng.standard_normal((1, 64)).astype("f2"), (n_kv, 64))
    wk_b = random_weights(rng, name, (2, rank, 128))
    kv = quant.LatentKV(c_kv, k_pe, wk_b, random_weights(rng, name, (2, 128, rank)), True)
    plan = lowlevel.plan_attention(
        n_head=128, n_tokens=2048, n_kv=n_kv, d_k=192, d_v=128,
        kv_dtype=(kv.k.type, kv.v.type), budget="64MiB",
    )  # fmt: skip
    assert plan.scratch_bytes <= 64 << 20 and plan.pass_rows == 2048
    q = rng.standard_normal((2, 3, 192), dtype=np.float32)
    with lowlevel.Pool("64MiB") as pool:
        out = lowlevel.attention(q, kv.k, kv.v, pool=pool)
    value = c_kv[0].astype(np.float64) @ quant.dequantize(kv.v.weights).astype("f8").transpose(
        0, 2, 1
    )
    expected = np.broadcast_to(value[:, None], out.shape)
    # 163840 equal weights in float32: sums of so many terms
    assert_close(out.astype(np.float64), expected, 2e-5)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(c_kv=np.zeros(3, "f4")), ValueError, "c_kv: expected an array or QuantTensor"),
        (dict(c_kv=np.zeros((5, 64), "f8")), TypeError, "c_kv: expected one of float32"),
        (
            dict(k_pe=np.zeros((4, 16), "f4")),
            ValueError,
            "k_pe: expected the 5 rows of c_kv, got 4",
        ),
        (dict(wk_b=np.zeros((2, 32, 64), "f4")), TypeError, "wk_b: expected a QuantTensor"),
        (dict(k_transposed=True), ValueError, r"wk_b: expected shape \(n_head, 64, d\)"),
        (dict(heads=3), ValueError, "wv_b: expected the 2 heads of wk_b"),
    ],
)
def test_arguments_that_do_not_fit(rng, change, error, text):
    change = dict(change)
    arguments = dict(
        c_kv=np.zeros((5, 64), "f4"), k_pe=np.zeros((5, 16), "f4"),
        wk_b=random_weights(rng, "F16", (2, 32, 64)),
        wv_b=random_weights(rng, "F16", (change.pop("heads", 2), 32, 64)),
    )  # fmt: skip
    with pytest.raises(error, match=text):
        quant.LatentKV(**{**arguments, **change})
