"""lowlevel.attention at its edges: shared memory and pools, strides no BLAS reads, plans, interrupts."""

import dataclasses
import sys

import numpy as np
import pytest
from attention_cases import FLOAT32_BOUND
from comparison import assert_close

import lowlevel
import quant
from lowlevel.pool_scope import Scope
from lowlevel.reference import attention_float64


def test_v_that_starts_inside_a_block_of_k_is_not_v_in_k():
    rng = np.random.default_rng(22)
    for qtype, block_bytes in (("Q8_0", 34), ("IQ4_NL", 18)):
        k = quant.quantize(rng.standard_normal((2, 50, 64), dtype=np.float32), qtype)
        inside = k.data[..., block_bytes // 2 : block_bytes // 2 + block_bytes].copy()
        inside[..., :2] = np.float16(0.01).reshape(1).view(np.uint8)  # scales that are numbers
        k.data[..., block_bytes // 2 : block_bytes // 2 + block_bytes] = inside
        v = quant.QuantTensor(
            k.data[..., block_bytes // 2 : block_bytes // 2 + block_bytes], qtype, (2, 50, 32)
        )
        q = rng.standard_normal((4, 20, 64), dtype=np.float32)
        apart = quant.QuantTensor(inside, qtype, v.shape)
        assert np.array_equal(lowlevel.attention(q, k, v), lowlevel.attention(q, k, apart))


def test_sinks_may_lie_under_out():
    rng = np.random.default_rng(23)
    q, k, v = (rng.standard_normal((4, n, 32), dtype=np.float32) for n in (20, 50, 50))
    out = np.zeros((4, 20, 32), np.float32)
    sinks = out.reshape(-1)[:4]
    lowlevel.attention(q, k, v, sinks=sinks, out=out)
    assert_close(out, attention_float64(q, k, v, sinks=np.zeros(4)), FLOAT32_BOUND)


def test_a_call_that_others_outran_plans_for_what_is_left(monkeypatch):
    """Another thread takes memory between a call's plan and its blocks: smaller tiles, no refusal."""
    rng = np.random.default_rng(24)
    q, k, v = (rng.standard_normal((4, n, 64), dtype=np.float32) for n in (50, 200, 200))
    sizes = dict(n_head=4, n_tokens=50, n_kv=200, d_k=64, d_v=64)
    preferred = lowlevel.plan_attention(**sizes).scratch_bytes
    with lowlevel.Pool(preferred) as pool:
        taken = []
        plan_attention = lowlevel.plan_attention

        def plan_and_lose(**kwargs):
            plan = plan_attention(**kwargs)
            if not taken:
                taken.append(pool.empty(4096, "uint8", tag="of another thread"))
            return plan

        monkeypatch.setattr(sys.modules["lowlevel.attention"], "plan_attention", plan_and_lose)
        out = lowlevel.attention(q, k, v, pool=pool)
        assert pool.peak <= preferred
        pool.free(taken[0])
    assert_close(out, attention_float64(q, k, v), FLOAT32_BOUND)


def test_a_pool_that_others_fill_says_who():
    q = np.zeros((4, 50, 64), np.float32)
    with lowlevel.Pool("1MiB") as pool:
        held = pool.empty(2**20, "uint8", tag="weights")
        with pytest.raises(lowlevel.BudgetError, match="held by 'weights'") as refused:
            lowlevel.attention(q, q, q, pool=pool)
        assert pool.used == 2**20 and refused.value.used == 2**20
        pool.free(held)
    with pytest.raises(ValueError, match="pool: it is closed"):
        lowlevel.attention(q, q, q, pool=pool)


def test_a_refused_calls_smallest_budget_works():
    """With the same blocks taken and freed before it; 256 bytes less are refused."""
    q = np.zeros((4, 50, 64), np.float32)

    def call(budget):
        with lowlevel.Pool(budget) as pool, pool.scope("others"):
            blocks = [pool.empty(n, "uint8", tag="weights") for n in (5000, 300, 9000)]
            pool.free(blocks[1])
            lowlevel.attention(q, q, q, pool=pool, n_threads=1)

    with pytest.raises(lowlevel.BudgetError) as refused:
        call("16KiB")
    error = refused.value
    assert error.rounded % 256 == 0 and f"{error.smallest_budget} B" in error.remedy
    call(error.smallest_budget)
    with pytest.raises(lowlevel.BudgetError):
        call(error.smallest_budget - 256)
    with pytest.raises(lowlevel.BudgetError) as alone:  # nobody else holds anything
        lowlevel.plan_attention(**SIZES, budget=100)
    assert alone.value.smallest_budget == alone.value.requested
    lowlevel.plan_attention(**SIZES, budget=alone.value.smallest_budget)


SIZES = dict(n_head=4, n_tokens=50, n_kv=200, d_k=64, d_v=64)


def test_plan_is_the_one_that_was_made():
    rng = np.random.default_rng(25)
    q, k, v = (rng.standard_normal((4, n, 64), dtype=np.float32) for n in (50, 200, 200))
    plan = lowlevel.plan_attention(**SIZES, n_threads=2)
    lowlevel.attention(q, k, v, plan=plan, n_threads=2, method="auto")
    for change in (dict(rows=7), dict(keys=plan.keys * 2), dict(n_workers=99), dict(scratch=())):
        with pytest.raises(ValueError, match="plan: changed since"):
            lowlevel.attention(q, k, v, plan=dataclasses.replace(plan, **change))
    for argument in (dict(n_threads=3), dict(method="steps"), dict(assemble="concat")):
        with pytest.raises(
            ValueError, match=f"plan: made for another call: {next(iter(argument))}"
        ):
            lowlevel.attention(q, k, v, plan=plan, **argument)


@pytest.mark.parametrize("axis", ["reversed", "one key for all", "overlapping"])
def test_steps_on_keys_that_blas_cannot_read(axis):
    rng = np.random.default_rng(26)
    q = rng.standard_normal((4, 50, 64), dtype=np.float32)
    x = rng.standard_normal((2, 700, 64), dtype=np.float32)
    flat = rng.standard_normal(2 * 700 * 8 + 64, dtype=np.float32)
    k = {
        "reversed": x[:, ::-1],
        "one key for all": np.broadcast_to(x[:, :1], x.shape),
        "overlapping": np.lib.stride_tricks.as_strided(flat, x.shape, (700 * 32, 32, 4)),
    }[axis]
    sizes = {**SIZES, "n_kv": 700, "n_head_kv": 2}
    for keys, values in ((k, x), (x, k)):
        expected = attention_float64(q, keys, values)
        assert_close(lowlevel.attention(q, keys, values), expected, FLOAT32_BOUND)
        plan = lowlevel.plan_attention(**sizes, method="steps", kv_strided=True)
        assert "kv chunk" in dict(plan.scratch)
        with lowlevel.Pool(plan.scratch_bytes) as pool:
            out = lowlevel.attention(q, keys, values, pool=pool, method="steps", plan=plan)
            assert pool.peak == plan.scratch_bytes
        assert_close(out, expected, FLOAT32_BOUND)
        in_place = lowlevel.plan_attention(**sizes, method="steps")
        with pytest.raises(ValueError, match="plan: made for another call: kv_strided"):
            lowlevel.attention(q, keys, values, plan=in_place)


def test_interrupted_as_the_scope_is_left(monkeypatch):
    """Ctrl-C may strike as `Scope.__exit__` is entered: the scratch is given back all the same."""
    q = np.zeros((4, 50, 64), np.float32)
    leave, struck = Scope.__exit__, []

    def strike_once(scope, *error):
        if not struck:
            struck.append(scope)
            raise KeyboardInterrupt
        return leave(scope, *error)

    monkeypatch.setattr(Scope, "__exit__", strike_once)
    with lowlevel.Pool("8MiB") as pool:
        with pytest.raises(KeyboardInterrupt):
            lowlevel.attention(q, q, q, pool=pool)
        assert struck and pool.used == 0
        lowlevel.attention(q, q, q, pool=pool)
