"""lowlevel.attention on the CPU against float64: every option, odd sizes, any strides, tight budgets."""

import threading

import numpy as np
import pytest
from attention_cases import FLOAT32_BOUND, random_case
from comparison import assert_close

import lowlevel
import quant
from lowlevel.attention.reference import attention_float64

SEEDS = range(20)
CASES_PER_SEED = 100


def expected(case, **more):
    return attention_float64(case.q, case.k, case.v, **case.options, **more)


def bound(case):
    # A mask, ALiBi or a softcap widen the scores; the bound grows with the largest of them.
    return FLOAT32_BOUND * (
        1 if not case.options.keys() & {"mask", "alibi_slopes", "softcap"} else 4
    )


def smallest_budget(case, **kwargs):
    """Bytes of the smallest tile, as the refusal of a budget of 0 names them."""
    with pytest.raises(lowlevel.BudgetError) as refused:
        lowlevel.plan_attention(**case.sizes, **kwargs, budget=0)
    return refused.value.requested


@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls_in_random_budgets(seed):
    """Any option, any budget between the smallest and the preferred: right, and plan == pool."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES_PER_SEED):
        case = random_case(rng)
        n_threads = int(rng.integers(1, 4))
        preferred = lowlevel.plan_attention(**case.sizes, n_threads=n_threads).scratch_bytes
        smallest = smallest_budget(case, n_threads=n_threads)
        budget = int(rng.integers(smallest, preferred + 1))
        plan = lowlevel.plan_attention(**case.sizes, n_threads=n_threads, budget=budget)
        with lowlevel.Pool(budget) as pool:
            other = pool.empty(0, tag="other")
            out, lse = lowlevel.attention(
                case.q, case.k, case.v, pool=pool, n_threads=n_threads, return_lse=True,
                **case.options,
            )  # fmt: skip
            # The pool's free space may be a few bytes less than the budget, never more.
            assert pool.peak <= budget
            assert pool.peak == plan.scratch_bytes, f"{case} seed {seed}"
            assert pool.used == 0
            pool.free(other)
        reference, reference_lse = expected(case, return_lse=True)
        assert_close(out, reference, bound(case), f"{case} seed {seed} budget {budget}")
        assert_close(lse, reference_lse, FLOAT32_BOUND, f"lse {case} seed {seed}", least=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("assemble", ["write", "concat"])
def test_method_steps(seed, assemble):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        case = random_case(rng)
        kwargs = dict(method="steps", assemble=assemble)
        preferred = lowlevel.plan_attention(**case.sizes, **kwargs).scratch_bytes
        budget = int(rng.integers(smallest_budget(case, **kwargs), preferred + 1))
        plan = lowlevel.plan_attention(**case.sizes, **kwargs, budget=budget)
        with lowlevel.Pool(budget) as pool:
            out, lse = lowlevel.attention(
                case.q, case.k, case.v, pool=pool, return_lse=True, **kwargs, **case.options
            )
            assert pool.peak == plan.scratch_bytes <= budget
        reference, reference_lse = expected(case, return_lse=True)
        assert_close(out, reference, bound(case), f"{case} seed {seed}")
        assert_close(lse, reference_lse, FLOAT32_BOUND, f"lse {case} seed {seed}", least=1)


def test_same_bits_under_every_budget_that_holds_the_preferred_tile():
    rng = np.random.default_rng(5)
    for _ in range(25):
        case = random_case(rng)
        for n_threads in (1, 3):
            free = lowlevel.plan_attention(**case.sizes, n_threads=n_threads)
            smallest = smallest_budget(case, n_threads=n_threads)
            whole = lowlevel.attention(case.q, case.k, case.v, plan=free, **case.options)
            for budget in range(free.scratch_bytes, smallest - 1, -4096):
                plan = lowlevel.plan_attention(**case.sizes, n_threads=n_threads, budget=budget)
                if (plan.heads, plan.rows, plan.keys, plan.n_splits) != (
                    free.heads, free.rows, free.keys, free.n_splits,
                ):  # fmt: skip
                    break
                again = lowlevel.attention(case.q, case.k, case.v, plan=plan, **case.options)
                assert np.array_equal(whole, again, equal_nan=True)


def test_key_splits_agree_with_float64():
    """One head, one token, many keys: split among workers and merged."""
    rng = np.random.default_rng(6)
    for n_tokens, n_threads, options in (
        (1, 2, {}), (1, 5, {"sinks": np.float32([0.5])}), (3, 8, {"window": 700}), (40, 4, {}),
    ):  # fmt: skip
        q = rng.standard_normal((1, n_tokens, 64), dtype=np.float32)
        k = rng.standard_normal((1, 5000, 64), dtype=np.float32)
        v = rng.standard_normal((1, 5000, 48), dtype=np.float32)
        sizes = dict(n_head=1, n_tokens=n_tokens, n_kv=5000, d_k=64, d_v=48, n_threads=n_threads)
        plan = lowlevel.plan_attention(**sizes)
        assert plan.n_splits > 1
        out, lse = lowlevel.attention(q, k, v, plan=plan, return_lse=True, **options)
        reference, reference_lse = attention_float64(q, k, v, return_lse=True, **options)
        assert_close(out, reference, FLOAT32_BOUND)
        assert_close(lse, reference_lse, 1e-6)


@pytest.mark.parametrize("method", ["auto", "steps"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unused_cache_slots_may_hold_anything(method, bad):
    """Keys left out by causality, window or mask contribute nothing, whatever they hold."""
    rng = np.random.default_rng(7)
    for n_head, n_head_kv, n_tokens in ((4, 2, 40), (4, 1, 1), (2, 2, 2), (3, 3, 300)):
        q = rng.standard_normal((n_head, n_tokens, 64), dtype=np.float32)
        k = rng.standard_normal((n_head_kv, 700, 64), dtype=np.float32)
        v = rng.standard_normal((n_head_kv, 700, 64), dtype=np.float32)
        unused = np.zeros(700, bool)
        unused[400:], unused[37], unused[:3] = True, True, True
        mask = np.where(unused, -np.inf, np.zeros((n_tokens, 1))).astype(np.float32)
        oldest = 700 - 1 - 650 - n_tokens  # outside every window, and not masked
        unused[: max(oldest, 0)] = True
        options = dict(mask=mask, causal=False, window=650, method=method)
        clean = lowlevel.attention(q, k, v, **options)
        k[:, unused] = bad
        v[:, unused, ::3] = bad
        out = lowlevel.attention(q, k, v, **options)
        assert_close(out, clean, 2e-6, f"{n_head} heads, {n_tokens} tokens")


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_causal_future_may_hold_nan(method):
    rng = np.random.default_rng(8)
    q = rng.standard_normal((2, 50, 32), dtype=np.float32)
    k = rng.standard_normal((2, 90, 32), dtype=np.float32)
    v = rng.standard_normal((2, 90, 40), dtype=np.float32)
    clean = lowlevel.attention(q, k, v, method=method)
    for last in (89, 70, 41):
        k[:, last:], v[:, last:] = np.nan, np.inf
        out = lowlevel.attention(q, k, v, method=method)
        seen = last - 40  # row i sits at 40 + i and sees keys up to itself
        assert_close(out[:, :seen], clean[:, :seen], 1e-6)
        assert np.isnan(out[:, seen:]).all()


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_nan_and_inf_that_are_attended_to_show(method):
    rng = np.random.default_rng(9)
    for n_tokens in (1, 5, 64):
        q, k, v = (rng.standard_normal((1, n, 32), dtype=np.float32) for n in (n_tokens, 64, 64))
        k[0, 3, 5] = np.nan
        assert np.isnan(lowlevel.attention(q, k, v, causal=False, method=method)).all()
        k[0, 3, 5] = 0
        v[0, 9, 4], v[0, 9, 5] = np.inf, np.nan
        out = lowlevel.attention(q, k, v, causal=False, method=method)
        assert np.isposinf(out[..., 4]).all()
        assert np.isnan(out[..., 5]).all()
        assert np.isfinite(out[..., :4]).all()


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_rows_with_nothing_to_attend_to_are_zero(method):
    rng = np.random.default_rng(10)
    q = rng.standard_normal((3, 20, 16), dtype=np.float32)
    k = rng.standard_normal((3, 12, 16), dtype=np.float32)  # the first 8 rows sit before key 0
    out, lse = lowlevel.attention(q, k, k, method=method, return_lse=True)
    assert (out[:, :8] == 0).all()
    assert np.isneginf(lse[:, :8]).all()
    assert np.isfinite(lse[:, 8:]).all()
    none = np.full((20, 12), -np.inf, np.float32)
    out = lowlevel.attention(q, k, k, mask=none, method=method)
    assert (out == 0).all()
    empty = np.empty((3, 0, 16), np.float32)
    out, lse = lowlevel.attention(q, empty, empty, method=method, return_lse=True)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    _, lse = lowlevel.attention(
        q, empty, empty, sinks=[1.5, 2, -np.inf], method=method, return_lse=True
    )
    assert (lse == np.float32([[1.5], [2], [-np.inf]])).all()
    assert lowlevel.attention(q[:, :0], k, k, method=method).shape == (3, 0, 16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("method", ["auto", "steps"])
def test_half_precision_k_and_v(dtype, method):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(dtype) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(11)
    for _ in range(10):
        case = random_case(rng)
        k, v = case.k.astype(dtype), case.v.astype(dtype)
        exact = attention_float64(
            case.q, k.astype(np.float32), v.astype(np.float32), **case.options
        )
        out = lowlevel.attention(case.q, k, v, method=method, **case.options)
        assert_close(out, exact, bound(case), str(case))
        mixed = lowlevel.attention(case.q, k, v.astype(np.float32), method=method, **case.options)
        assert_close(mixed, exact, bound(case), str(case))


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_quantised_k_and_v(method):
    """Each 32-weight type, K and V of different types too, heads in any order."""
    rng = np.random.default_rng(21)
    types = ("Q8_0", "Q4_0", "IQ4_NL")
    for i in range(12):
        n_kv, d_k, d_v = int(rng.integers(1, 400)), 32 * int(rng.integers(1, 7)), 64
        q = rng.standard_normal((6, int(rng.integers(1, 60)), d_k), dtype=np.float32)
        k = quant.quantize(rng.standard_normal((3, n_kv, d_k), dtype=np.float32), types[i % 3])
        v = quant.quantize(rng.standard_normal((3, n_kv, d_v), dtype=np.float32), types[i // 3 % 3])
        k_backwards = quant.QuantTensor(k.data[::-1], k.qtype, k.shape)
        for k_form in (k, k_backwards):
            sizes = dict(n_head=6, n_head_kv=3, n_tokens=q.shape[1], n_kv=n_kv, d_k=d_k, d_v=d_v)
            plan = lowlevel.plan_attention(
                **sizes, method=method, kv_dtype=(k.qtype.name, v.qtype.name)
            )
            with lowlevel.Pool(plan.scratch_bytes) as pool:
                out = lowlevel.attention(q, k_form, v, pool=pool, method=method)
                assert pool.peak == plan.scratch_bytes
            exact = attention_float64(q, quant.dequantize(k_form), quant.dequantize(v))
            assert_close(out, exact, FLOAT32_BOUND, f"{k.qtype.name} {v.qtype.name} {sizes}")


def test_super_blocks_cannot_be_keys():
    k = quant.quantize(np.zeros((2, 9, 256), np.float32), "Q4_K")
    with pytest.raises(ValueError, match="Q8_0"):
        lowlevel.attention(np.zeros((2, 3, 256), np.float32), k, k)


def strided_forms(array):
    """The same values in other memory layouts with a contiguous last axis."""
    heads, rows, width = array.shape
    by_row = np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(1, 0, 2)
    wide = np.full((heads + 1, rows + 3, width + 5), np.nan, array.dtype)
    wide[1:, 2 : rows + 2, 3 : width + 3] = array
    backwards = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    yield from (by_row, wide[1:, 2 : rows + 2, 3 : width + 3], backwards)


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_any_strides(method):
    rng = np.random.default_rng(12)
    q = rng.standard_normal((6, 37, 48), dtype=np.float32)
    k = rng.standard_normal((3, 101, 48), dtype=np.float32)
    v = rng.standard_normal((3, 101, 40), dtype=np.float32)
    mask = rng.standard_normal((6, 37, 101), dtype=np.float32)
    plain = lowlevel.attention(q, k, v, mask=mask, method=method)
    for q_, k_, v_ in zip(strided_forms(q), strided_forms(k), strided_forms(v), strict=True):
        mask_ = np.asfortranarray(mask)
        out = np.full((37, 6, 40), np.nan, np.float32).transpose(1, 0, 2)
        assert lowlevel.attention(q_, k_, v_, mask=mask_, out=out, method=method) is out
        assert_close(out, plain, 1e-6)
        k16, v16 = k_.astype(np.float16), v_.astype(np.float16)
        whole = lowlevel.attention(q, k16.copy(), v16.copy(), method=method)
        assert_close(lowlevel.attention(q_, k16, v16, method=method), whole, 1e-6)


def test_zero_strides_and_shared_heads():
    rng = np.random.default_rng(13)
    q = rng.standard_normal((8, 20, 32), dtype=np.float32)
    k, v = rng.standard_normal((2, 1, 60, 32), dtype=np.float32)
    many = [np.broadcast_to(x, (8, 60, 32)) for x in (k, v)]
    whole = lowlevel.attention(q, k, v)
    assert_close(lowlevel.attention(q, *many), whole, 1e-6)
    one_row = np.broadcast_to(q[:, :1], q.shape)
    assert_close(
        lowlevel.attention(one_row, k, v, causal=False),
        np.broadcast_to(lowlevel.attention(q[:, :1], k, v, causal=False), q.shape),
        1e-6,
    )


def test_latent_v_inside_k():
    """MLA: V is a range of K's columns and is not decoded a second time."""
    rng = np.random.default_rng(14)
    for dtype in (np.float32, np.float16):
        for first, d_v in ((0, 64), (16, 64), (3, 70)):
            cache = rng.standard_normal((1, 500, 80)).astype(dtype)
            q = rng.standard_normal((20, 33, 80), dtype=np.float32)
            v = cache[:, :, first : first + d_v]
            plan = lowlevel.plan_attention(
                n_head=20, n_head_kv=1, n_tokens=33, n_kv=500, d_k=80, d_v=d_v, v_in_k=True,
                kv_dtype=dtype,
            )  # fmt: skip
            apart = lowlevel.attention(q, cache, v.copy())
            assert np.array_equal(lowlevel.attention(q, cache, v, plan=plan), apart)
            with pytest.raises(ValueError, match="v_in_k"):
                lowlevel.attention(q, cache, v.copy(), plan=plan)


def test_merge_states_joins_parts_of_the_keys():
    rng = np.random.default_rng(15)
    q, k, v = (rng.standard_normal((4, n, 32), dtype=np.float32) for n in (9, 100, 100))
    mask = np.zeros((9, 100), np.float32)
    mask[:, 50:] = -np.inf
    mask[3] = -np.inf  # nothing to attend to at all
    whole, whole_lse = lowlevel.attention(q, k, v, causal=False, mask=mask, return_lse=True)
    parts = [
        lowlevel.attention(
            q, k[:, a:b], v[:, a:b], causal=False, mask=mask[:, a:b], return_lse=True
        )
        for a, b in ((0, 7), (7, 50), (50, 100))
    ]
    out, lse = lowlevel.merge_states(*zip(*parts, strict=True))
    assert_close(out, whole, 1e-6)
    assert_close(lse, whole_lse, 1e-6)
    assert out.dtype == lse.dtype == np.float32


def test_scratch_comes_from_the_callers_pool_and_goes_back():
    rng = np.random.default_rng(16)
    q, k, v = (rng.standard_normal((4, n, 64), dtype=np.float32) for n in (50, 200, 200))
    with lowlevel.Pool("4MiB", debug=True) as pool:
        held = pool.empty(1000, "float32", tag="held")
        pool.reset_peak()
        before = pool.used
        lowlevel.attention(q, k, v, pool=pool)
        sizes = dict(n_head=4, n_tokens=50, n_kv=200, d_k=64, d_v=64)
        assert pool.peak - before == lowlevel.plan_attention(**sizes).scratch_bytes
        assert pool.used == before
        pool.free(held)


def test_a_full_pool_refuses_and_nothing_is_written():
    rng = np.random.default_rng(17)
    q, k, v = (rng.standard_normal((4, n, 64), dtype=np.float32) for n in (50, 200, 200))
    out = np.full((4, 50, 64), 7, np.float32)
    with lowlevel.Pool("4KiB") as pool:
        with pytest.raises(lowlevel.BudgetError, match="at least") as refused:
            lowlevel.attention(q, k, v, pool=pool, out=out)
        assert pool.used == pool.peak == 0
    assert (out == 7).all()
    with lowlevel.Pool(refused.value.requested) as pool:
        lowlevel.attention(q, k, v, pool=pool, out=out)
    assert_close(out, attention_float64(q, k, v), FLOAT32_BOUND)


def test_calls_from_many_threads_on_one_pool():
    rng = np.random.default_rng(18)
    cases = [random_case(rng) for _ in range(24)]
    results = [None] * len(cases)
    with lowlevel.Pool("64MiB") as pool:

        def work(first):
            for i in range(first, len(cases), 6):
                c = cases[i]
                results[i] = lowlevel.attention(
                    c.q, c.k, c.v, pool=pool, n_threads=1 + i % 3, **c.options
                )

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.used == 0
    for case, result in zip(cases, results, strict=True):
        assert_close(result, expected(case), bound(case), str(case))


def test_a_failing_worker_releases_the_scratch(monkeypatch):
    """An exception or Ctrl-C inside a call leaves the pool as it was."""
    from lowlevel.cpu import threads

    rng = np.random.default_rng(19)
    q, k, v = (rng.standard_normal((8, n, 64), dtype=np.float32) for n in (300, 600, 600))
    for error in (KeyboardInterrupt, RuntimeError):

        def fail(*args, error=error):
            raise error

        with lowlevel.Pool("16MiB") as pool, monkeypatch.context() as patch:
            patch.setattr(threads, "run_tasks", fail)
            with pytest.raises(error):
                lowlevel.attention(q, k, v, pool=pool, n_threads=2)
            assert pool.used == 0
    assert_close(lowlevel.attention(q, k, v), attention_float64(q, k, v), FLOAT32_BOUND)


def test_large_offsets():
    """Keys past 2**31 elements and 2**33 bytes from the start, by strides over little memory."""
    rng = np.random.default_rng(20)
    width, n_kv, stride = 64, 40, 2**28  # 2**28 * 40 * 4 bytes = 40 GiB of address space
    try:
        space = np.memmap(_sparse_file(stride * n_kv * 4 + 4096), np.float32, "r+")
    except OSError as error:
        pytest.fail(f"no sparse file: {error}")
    k = np.lib.stride_tricks.as_strided(space, (1, n_kv, width), (0, stride * 4, 4))
    values = rng.standard_normal((1, n_kv, width), dtype=np.float32)
    k[...] = values
    q = rng.standard_normal((1, 5, width), dtype=np.float32)
    for method in ("auto", "steps"):
        out = lowlevel.attention(q, k, k, method=method)
        assert_close(out, attention_float64(q, values, values), FLOAT32_BOUND)


def _sparse_file(n_bytes):
    import tempfile

    file = tempfile.TemporaryFile()  # the memmap keeps it
    file.truncate(n_bytes)
    return file


def good():
    q = np.zeros((4, 6, 16), np.float32)
    kv = np.zeros((2, 9, 16), np.float32)
    return dict(q=q, k=kv, v=kv.copy())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(q=[[1.0]]), TypeError, "q: expected a NumPy array"),
        (dict(q=np.zeros((4, 6), np.float32)), ValueError, r"q: expected shape"),
        (dict(q=np.zeros((4, 6, 16))), TypeError, "q: expected float32 on cpu, got float64"),
        (dict(q=np.zeros((4, 6, 32), np.float32)[..., ::2]), ValueError, "q: the last axis"),
        (dict(q=np.zeros((0, 6, 16), np.float32)), ValueError, "q: expected shape"),
        (dict(k=np.zeros((3, 9, 16), np.float32)), ValueError, "k: expected shape .n_head_kv"),
        (dict(k=np.zeros((2, 9, 8), np.float32)), ValueError, r"k: expected shape .*16"),
        (dict(k=np.zeros((2, 9, 16), np.int32)), TypeError, "k: expected one of float32"),
        (dict(k="k"), TypeError, "k: expected a NumPy array or a QuantTensor"),
        (dict(k=np.zeros((2, 9, 16, 1), np.float32)), ValueError, "k: expected 3 axes"),
        (dict(v=np.zeros((2, 8, 16), np.float32)), ValueError, "v: expected shape"),
        (dict(v=np.zeros((2, 9, 32), np.float16)[..., ::2]), ValueError, "v: the last axis"),
        (dict(mask=np.zeros((9, 6), np.float32)), ValueError, "mask: expected shape"),
        (dict(mask=np.zeros((6, 9), bool)), TypeError, "mask: expected float32 on cpu, got bool"),
        (dict(window=0), ValueError, "window: expected an int >= 1"),
        (dict(window=2.5), TypeError, "window"),
        (dict(softcap=0), ValueError, "softcap"),
        (dict(softcap=float("inf")), ValueError, "softcap"),
        (dict(scale=float("nan")), ValueError, "scale"),
        (dict(scale="big"), TypeError, "scale"),
        (dict(causal=1), TypeError, "causal"),
        (dict(softcap=1e-60), ValueError, "softcap: .*float32"),
        (dict(softcap=1e39), ValueError, "softcap: .*float32"),
        (dict(scale=-1e39), ValueError, "scale: .*float32"),
        (dict(scale=10**400), ValueError, "scale: .*float32"),
        (dict(q=np.zeros((4, 6, 16), ">f4")), TypeError, "q: expected float32 on cpu, got >f4"),
        (dict(mask=np.zeros((6, 9), ">f4")), TypeError, "mask: expected float32 on cpu, got >f4"),
        (dict(out=np.zeros((4, 6, 16), ">f4")), TypeError, "out: expected float32 on cpu, got >f4"),
        (dict(k=np.zeros((2, 9, 16), ">f4")), TypeError, "k: expected one of float32"),
        (dict(v=np.zeros((2, 9, 16), ">f2")), TypeError, "v: expected one of float32"),
        (dict(pool="1MiB"), TypeError, "pool: expected a lowlevel.Pool"),
        (dict(sinks=[1.0]), ValueError, "sinks: expected 4 values"),
        (dict(sinks=["a"] * 4), TypeError, "sinks: expected 4 real numbers"),
        (dict(mask=np.ma.ones((6, 9), np.float32)), TypeError, "mask: .*got MaskedArray"),
        (dict(sinks=[1, 2, 3, float("inf")]), ValueError, "sinks: .*finite"),
        (dict(alibi_slopes=[1, 2, 3, 1e39]), ValueError, "alibi_slopes: .*finite"),
        (dict(alibi_slopes=[1, 2, 3, float("nan")]), ValueError, "alibi_slopes: expected .*finite"),
        (dict(method="quick"), ValueError, "method"),
        (dict(assemble="concat"), ValueError, "assemble"),
        (dict(n_threads=0), ValueError, "n_threads"),
        (
            dict(n_threads=5000, method="steps"),
            ValueError,
            "n_threads: expected an int, 1 to .*5000",
        ),
        (dict(out=np.zeros((4, 6, 15), np.float32)), ValueError, "out: expected shape"),
        (dict(out=np.zeros((4, 6, 16))), TypeError, "out: expected float32"),
        (dict(out=np.zeros((4, 6, 32), np.float32)[..., ::2]), ValueError, "out: the last axis"),
        (dict(plan="a plan"), TypeError, "plan"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(change, error, text):
    arguments = {**good(), **change}
    arguments.setdefault("out", np.full((4, 6, 16), 7, np.float32))
    before = arguments["out"].copy()
    with lowlevel.Pool("1MiB") as pool:
        with pytest.raises(error, match=text):
            lowlevel.attention(**{"pool": pool, **arguments})
        assert pool.used == pool.peak == 0
    assert np.array_equal(arguments["out"], before)


def test_out_that_cannot_be_written_is_refused():
    operands = good()
    read_only = np.zeros((4, 6, 16), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"out: .*read-only"):
        lowlevel.attention(**operands, out=read_only)
    with pytest.raises(ValueError, match=r"out: .*two elements in one place"):
        lowlevel.attention(
            **operands,
            out=np.lib.stride_tricks.as_strided(np.zeros(96, "f4"), (4, 6, 16), (0, 64, 4)),
        )
    with pytest.raises(ValueError, match="out: shares memory with q"):
        lowlevel.attention(**operands, out=operands["q"])
    both = np.zeros((4, 6, 48), np.float32)  # q and out side by side in one array: allowed
    q, out = both[..., :16], both[..., 32:]
    lowlevel.attention(q, operands["k"], operands["v"], out=out)


def test_a_plan_for_another_call_is_refused():
    plan = lowlevel.plan_attention(n_head=4, n_head_kv=2, n_tokens=6, n_kv=10, d_k=16, d_v=16)
    with pytest.raises(ValueError, match="plan: made for another call: n_kv 10"):
        lowlevel.attention(**good(), plan=plan)
