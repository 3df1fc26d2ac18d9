"""lowlevel.attention at its edges: shared memory and pools, strides no BLAS reads, plans, interrupts."""

import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from attention_cases import FLOAT32_BOUND
from comparison import assert_close

import lowlevel
import quant
from lowlevel.attention.reference import attention_float64
from lowlevel.pool.scope import Scope


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

        monkeypatch.setattr(sys.modules["lowlevel.attention.call"], "plan_attention", plan_and_lose)
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


def _unaligned(x):
    """A copy of `x` that starts, and whose heads start, off the multiples of 4."""
    heads, keys, width = x.shape
    memory = np.zeros(heads * (4 * keys * width + 1) + 1, np.uint8)
    strides = (4 * keys * width + 1, 4 * width, 4)
    there = np.ndarray(x.shape, np.float32, memory, 1, strides)
    there[...] = x
    return there


@pytest.mark.parametrize("axis", ["reversed", "one key for all", "overlapping", "unaligned"])
def test_steps_on_keys_that_blas_cannot_read(axis):
    rng = np.random.default_rng(26)
    q = rng.standard_normal((4, 50, 64), dtype=np.float32)
    x = rng.standard_normal((2, 700, 64), dtype=np.float32)
    flat = rng.standard_normal(2 * 700 * 8 + 64, dtype=np.float32)
    k = {
        "reversed": x[:, ::-1],
        "one key for all": np.broadcast_to(x[:, :1], x.shape),
        "unaligned": _unaligned(x),
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
    """Ctrl-C may strike as `Scope._leave` begins: the scratch is given back all the same."""
    q = np.zeros((4, 50, 64), np.float32)
    leave, struck = Scope._leave, []

    def strike_once(scope, *arguments):
        if not struck:
            struck.append(scope)
            raise KeyboardInterrupt
        return leave(scope, *arguments)

    monkeypatch.setattr(Scope, "_leave", strike_once)
    with lowlevel.Pool("8MiB") as pool:
        with pytest.raises(KeyboardInterrupt):
            lowlevel.attention(q, q, q, pool=pool)
        assert struck and pool.used == 0
        lowlevel.attention(q, q, q, pool=pool)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_every_tile_holds_whole_register_tiles_of_keys(n_threads):
    """Scores are written 8 keys at a time: a tile of 12 keys would overrun its block, or the scores
    of the next worker. A debug pool finds that; any budget may choose the tile."""
    rng = np.random.default_rng(27)
    for n_head, d_k, d_v in ((5, 80, 16), (8, 192, 128), (12, 160, 33), (3, 32, 96)):
        q = rng.standard_normal((n_head, 1 + n_head % 2, d_k), dtype=np.float32)
        k = rng.standard_normal((1, 101, d_k)).astype(np.float16)
        v = rng.standard_normal((1, 101, d_v)).astype(np.float16)
        exact = attention_float64(q, k, v)
        sizes = dict(n_head=n_head, n_head_kv=1, n_tokens=q.shape[1], n_kv=101, d_k=d_k, d_v=d_v)
        sizes |= dict(kv_dtype="float16", n_threads=n_threads)
        budget = lowlevel.plan_attention(**sizes).scratch_bytes
        while True:  # one byte less than the last tile took, down to the smallest
            try:
                plan = lowlevel.plan_attention(**sizes, budget=budget)
            except lowlevel.BudgetError:
                break
            with lowlevel.Pool(budget, debug=True) as pool:
                out = lowlevel.attention(q, k, v, pool=pool, plan=plan)
            assert_close(out, exact, FLOAT32_BOUND, f"{plan.keys} keys, {n_head} heads")
            budget = plan.scratch_bytes - 1


@pytest.mark.parametrize("assemble", ["write", "concat"])
def test_steps_without_keys_in_any_type(assemble):
    q = np.ones((4, 5, 64), np.float32)
    for qtype in ("Q8_0", "IQ4_NL", "F16"):
        empty = quant.quantize(np.zeros((2, 0, 64), np.float32), qtype)
        out, lse = lowlevel.attention(
            q, empty, empty, method="steps", assemble=assemble, sinks=[1, 2, 3, 4], return_lse=True
        )
        assert (out == 0).all()
        assert np.array_equal(lse, np.repeat(np.float32([[1], [2], [3], [4]]), 5, axis=1))


@pytest.mark.parametrize("method", ["auto", "steps"])
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_scores_past_float32_are_nan_not_a_guess(method, n_tokens):
    rng = np.random.default_rng(28)
    q, k, v = (rng.standard_normal((4, n, 64), dtype=np.float32) for n in (n_tokens, 200, 200))
    for scale in (1e38, -1e38):
        assert np.isnan(lowlevel.attention(q, k, v, scale=scale, method=method)).all()


def test_a_softcap_without_a_reciprocal_is_refused():
    q = np.zeros((4, 5, 64), np.float32)
    with pytest.raises(ValueError, match=r"softcap: .*float32, at least 1\.2e-38"):
        lowlevel.attention(q, q, q, softcap=1e-40)
    assert (lowlevel.attention(q, q, q, softcap=1.2e-38) == 0).all()


def test_a_plan_with_a_list_in_it_is_refused_by_name():
    q, kv = np.zeros((4, 50, 64), np.float32), np.zeros((4, 200, 64), np.float32)
    plan = lowlevel.plan_attention(**SIZES)
    lists = dataclasses.replace(plan, scratch=[list(block) for block in plan.scratch])
    with pytest.raises(ValueError, match="plan: changed since"):
        lowlevel.attention(q, kv, kv.copy(), plan=lists)


@pytest.mark.parametrize("argument", ["kv_dtype", "q_dtype", "out_dtype"])
def test_what_is_no_type_is_named(argument):
    with pytest.raises(TypeError, match=f"{argument}: expected a dtype or a name"):
        lowlevel.plan_attention(**SIZES, **{argument: 3})


MANY_ROWS_BACKWARDS = textwrap.dedent(
    """
    import sys
    import numpy as np
    import lowlevel

    def resident_peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

    step = int(sys.argv[1])
    q, out = np.ones((1, 120000, 192), np.float32), np.ones((1, 120000, 192), np.float32)
    kv = np.ones((1, 16, 192), np.float32)
    with lowlevel.Pool("16MiB") as pool:
        for n in (100, 120000):  # the first warms up
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
            before = resident_peak()
            lowlevel.attention(
                q[:, :n][:, ::step], kv, kv, out=out[:, :n][:, ::step], pool=pool, method="steps"
            )
        print(resident_peak() - before - pool.peak)
    """
)


def test_steps_copies_no_head_of_queries_or_output():
    """BLAS reads no rows that lie backwards; NumPy would copy 88 MiB of each beside the pool."""
    beside = []
    for step in (1, -1):
        child = [sys.executable, "-c", MANY_ROWS_BACKWARDS, str(step)]
        run = subprocess.run(child, capture_output=True, text=True, check=True)
        beside.append(int(run.stdout))
    # What BLAS packs (up to 32 MiB a thread) is in both; copies are not.
    assert beside[1] - beside[0] <= 16 * 2**20, beside


@pytest.mark.parametrize("name", ["sinks", "alibi_slopes"])
def test_a_masked_array_is_called_by_its_argument(name):
    q = np.ones((2, 3, 4), np.float32)
    with pytest.raises(TypeError, match=rf"^{name}: expected a NumPy array, got MaskedArray"):
        lowlevel.attention(q, q, q, **{name: np.ma.masked_array(np.zeros(2))})
    with pytest.raises(TypeError, match=r"^lses\[0\]: expected a NumPy array"):
        lowlevel.merge_states([q], [np.ma.masked_array(np.zeros((2, 3)))])
