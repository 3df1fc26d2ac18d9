"""MLA's latents as K and V on a device, decompressed chunk by chunk; the casts that this takes; joined states."""

import itertools

import numpy as np
import pytest
from attention_calls import DTYPES, HALF_BOUND, bound_for
from attention_cases import FLOAT32_BOUND
from comparison import assert_close
from latent_cases import latent_case

import lowlevel
import quant
from lowlevel import BudgetError, devices
from lowlevel.attention.reference import attention_float64
from lowlevel.gpu import instances
from lowlevel.gpu.cast import cast

KERNELS = (*instances.CAST.values(), *instances.MERGE_STATES.values())


def on_device(kv, device):
    """A `LatentKV` of arrays on a device."""
    c_kv, k_pe = (lowlevel.asarray(x.data[0], device) for x in (kv.k.latents, kv.k.tail))
    weights = kv.k.weights.to(device), kv.v.weights.to(device)
    return quant.LatentKV(c_kv, k_pe, *weights, kv.k.transposed)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(DTYPES, 2)))
def test_casts(device, source, target, launched, rng):
    """Rounded to nearest even, in any strides; one plane for all as well."""
    there = devices.get(device)
    for planes in (1, 3):
        values = rng.standard_normal((planes, 37, 90), dtype=np.float32).astype(DTYPES[source])
        values[0, 0, :4] = [np.inf, -np.inf, np.nan, 65519.0]
        given = lowlevel.asarray(values, device)[:, 3:, :70]
        out = lowlevel.asarray(np.zeros((3, 34, 75), DTYPES[target]), device)
        cast(there, out[..., 2:72], given)
        expected = np.zeros((3, 34, 75), DTYPES[target])
        with np.errstate(over="ignore"):
            expected[..., 2:72] = values[:, 3:, :70].astype(np.float32).astype(DTYPES[target])
        np.testing.assert_array_equal(lowlevel.asnumpy(out), expected)
    assert set(launched) == {instances.CAST[source, target]}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("name", "k_transposed"), [("F16", False), ("IQ4_NL", True)])
def test_attention_over_latents(device, name, k_transposed, dtype, rng):
    """Fused (head sizes with a kernel, 16-bit queries) and by tiles, as over decompressed K and V."""
    case = latent_case(
        rng, name, n_head=3, n_kv=300, rank=32, d_nope=32, d_rope=32, d_v=64,
        k_transposed=k_transposed,
    )  # fmt: skip
    q = rng.standard_normal((3, 9, 64), dtype=np.float32).astype(DTYPES[dtype])
    kv, q_there = on_device(case.kv, device), lowlevel.asarray(q, device)
    expected, expected_lse = attention_float64(q, case.k, case.v, return_lse=True)
    bound = FLOAT32_BOUND if dtype == "float32" else bound_for(q, 2 * HALF_BOUND)
    budget, shapes = None, set()
    for _ in range(6):
        try:
            plan = lowlevel.plan_attention(
                n_head=3, n_tokens=9, n_kv=300, d_k=64, d_v=64, q_dtype=dtype,
                kv_dtype=(kv.k.type, kv.v.type), out_dtype="float32", device=device, budget=budget,
            )  # fmt: skip
        except BudgetError:
            break
        shapes.add((plan.heads, plan.rows, plan.keys))
        assert plan.path.startswith("tiles" if dtype == "float32" else "fused ")
        with lowlevel.Pool(plan.scratch_bytes, device=device) as pool:
            out = lowlevel.asarray(np.full((3, 9, 64), np.nan, "f4"), device)
            _, lse = lowlevel.attention(
                q_there, kv.k, kv.v, pool=pool, plan=plan, out=out, return_lse=True
            )
            assert pool.peak == plan.scratch_bytes
        assert_close(lowlevel.asnumpy(out).astype(np.float64), expected, bound, str(plan))
        assert_close(lowlevel.asnumpy(lse).astype(np.float64), expected_lse, bound, str(plan))
        budget = plan.scratch_bytes * 3 // 4
    assert len(shapes) > 1


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_states_are_joined_where_they_lie(device, dtype, launched, rng):
    """Nothing is allocated or brought to the host; parts without keys, and NaN in them, count for nothing."""
    shape = (3, 5, 40)
    parts = rng.standard_normal((4, *shape), dtype=np.float32).astype(DTYPES[dtype])
    lses = rng.normal(0, 20, (4, *shape[:2])).astype(np.float32)
    lses[0, 0] = lses[2, 1] = -np.inf
    parts[2, 1] = np.nan
    lses[:, 2, 3] = -np.inf
    with lowlevel.Pool("64KiB", device=device) as pool:
        out, lse = pool.empty(shape), pool.empty(shape[:2])
        there = [[lowlevel.asarray(x, device) for x in xs] for xs in (parts, lses)]
        joined = lowlevel.merge_states(*there, out=out, lse=lse)
        assert joined[0] is out and joined[1] is lse
        result = lowlevel.asnumpy(out).astype(np.float64), lowlevel.asnumpy(lse).astype(np.float64)
        pool.free(out)
        pool.free(lse)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = lses.astype(np.float64).max(axis=0)
        weights = np.exp(lses - np.where(np.isneginf(top), 0, top))
        expected = np.where(
            weights[..., None] > 0, weights[..., None] * parts.astype(np.float64), 0
        )
        total = weights.sum(axis=0)
        expected = np.where(total[..., None] > 0, expected.sum(axis=0) / total[..., None], 0)
        expected_lse = np.where(np.isneginf(top), 0, top) + np.log(total)
    assert_close(result[0], expected, 2e-6)
    assert_close(result[1], expected_lse, 2e-6)
    assert set(launched) == {instances.MERGE_STATES[dtype]}


def test_states_that_do_not_fit(device):
    out, lse = (lowlevel.asarray(np.zeros(s, "f4"), device) for s in ((1, 2, 8), (1, 2)))
    with pytest.raises(ValueError, match=r"lses\[0\]: expected shape \(1, 2\)"):
        lowlevel.merge_states([out], [out])
    with pytest.raises(TypeError, match=r"lses\[0\]: lies on .*, outs"):
        lowlevel.merge_states([out], [np.zeros((1, 2), "f4")])
    with pytest.raises(ValueError, match="lse: expected shape"):
        lowlevel.merge_states([out], [lse], lse=out)
