"""Attention over quantised K and V: decoded a chunk at a time, the fused kernels going on from chunk
to chunk; on the simulator and (marker gpu) on a GPU."""

import numpy as np
import pytest
from attention_calls import DTYPES, HALF_BOUND, bound_for, random_operands, random_options
from attention_cases import FLOAT32_BOUND
from comparison import assert_close
from quant_cases import CHECKED

import lowlevel
import quant
from lowlevel import cudasim
from lowlevel.attention.reference import attention_float64
from lowlevel.gpu import instances

PAIRS = (("Q8_0", "Q4_1"), ("Q4_0", "Q5_0"), ("IQ4_NL", "Q5_1"), ("Q8_0", None))  # of K, of V


def decoded(t, q):
    """What the kernels see of a tensor: rounded to q's type where that has 16 bits."""
    return quant.dequantize(t).astype(q.dtype)


def plan_of(q, k, v, device, **more):
    k_type, v_type = (
        x.format.name if isinstance(x, quant.QuantTensor) else x.dtype.name for x in (k, v)
    )
    return lowlevel.plan_attention(
        n_head=q.shape[0], n_head_kv=k.shape[0], n_tokens=q.shape[1], n_kv=k.shape[1],
        d_k=q.shape[2], d_v=v.shape[2], q_dtype=q.dtype, kv_dtype=(k_type, v_type), device=device,
        **more,
    )  # fmt: skip


def check(device, q, k, v, expected, options, bound, budget, what=""):
    """A call on a device against float64 results; its pool's peak must be the plan's scratch."""
    options, bound = dict(options), bound_for(q, bound)
    if options.get("mask") is not None:
        options["mask"] = lowlevel.asarray(options["mask"], device)
    with lowlevel.Pool(budget, device=device) as pool:
        out = lowlevel.asarray(np.full((*q.shape[:2], v.shape[2]), np.nan, "f4"), device)
        _, lse = lowlevel.attention(
            lowlevel.asarray(q, device), k, v, pool=pool, out=out, return_lse=True, **options
        )
        plan = plan_of(q, k, v, device, budget=budget, out_dtype="float32")
        assert pool.peak == plan.scratch_bytes, plan
    what = f"{what} {plan.heads}x{plan.rows}x{plan.keys}/{plan.n_splits} {sorted(options)}"
    assert_close(lowlevel.asnumpy(out).astype(np.float64), expected[0], bound, what)
    assert_close(lowlevel.asnumpy(lse), expected[1], bound, f"lse {what}")
    return plan


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("types", PAIRS, ids=str)
def test_fused(device, types, dtype, launched, rng):
    """All budgets down to the smallest; K quantised and V of q's own type, too."""
    shapes = set()
    for heads, n_tokens, n_kv, sizes in (
        ((4, 2), 33, 300, (64, 64)),
        ((6, 1), 5, 200, (192, 128)),
        ((3, 3), 70, 130, (128, 128)),
    ):
        q, k, v = random_operands(rng, *heads, n_tokens, n_kv, *sizes, dtype)
        k = quant.quantize(k.astype("f4"), types[0])
        v = v if types[1] is None else quant.quantize(v.astype("f4"), types[1])
        seen = [x if isinstance(x, np.ndarray) else decoded(x, q) for x in (k, v)]
        options = random_options(rng, heads[0], n_tokens, n_kv)
        expected = attention_float64(q, *seen, return_lse=True, **options)
        k, v = (x.to(device) if hasattr(x, "to") else lowlevel.asarray(x, device) for x in (k, v))
        for budget in ("8MiB", "120KiB", "60KiB", "45KiB"):
            plan = check(device, q, k, v, expected, options, HALF_BOUND, budget, str(types))
            shapes.add((plan.heads, plan.rows, plan.keys))
    assert len(shapes) > 4
    assert not set(launched) & set(instances.SOFTMAX.values())


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q5_0", "Q5_1"])
def test_latent(device, name, rng):
    """V inside K: one chunk serves both."""
    q, k, _ = random_operands(rng, 16, 1, 3, 150, 576, 512, "bfloat16")
    k = quant.quantize(k.astype("f4"), name)
    values = decoded(k, q)
    expected = attention_float64(q, values, values[..., 64:], return_lse=True)
    k = k.to(device)
    block = k.format
    data = k.data[..., 64 // block.block_weights * block.block_bytes :]
    v = quant.QuantTensor(data, name, (1, 150, 512))
    for budget in ("1MiB", "300KiB"):
        with lowlevel.Pool(budget, device=device) as pool:
            out, lse = lowlevel.attention(
                lowlevel.asarray(q, device), k, v, pool=pool, return_lse=True
            )
            plan = plan_of(q, k, v, device, budget=budget, v_in_k=True, out_dtype=q.dtype)
            assert pool.peak == plan.scratch_bytes, plan
        assert "v chunk" not in dict(plan.scratch)
        assert_close(lowlevel.asnumpy(out).astype("f8"), expected[0], HALF_BOUND + 2.0**-8)
        assert_close(lowlevel.asnumpy(lse), expected[1], HALF_BOUND)


def test_few_tokens_split_the_keys(device, launched, rng):
    q, k, v = random_operands(rng, 4, 2, 1, 2100, 64, 64, "float16")
    k, v = (quant.quantize(x.astype("f4"), "Q8_0") for x in (k, v))
    expected = attention_float64(q, decoded(k, q), decoded(v, q), return_lse=True)
    k, v = k.to(device), v.to(device)
    plan = check(device, q, k, v, expected, {}, HALF_BOUND, "8MiB")
    assert plan.n_splits == 4 and instances.MERGE["float16"] in launched
    plan = check(device, q, k, v, expected, {}, HALF_BOUND, "700KiB")
    assert plan.n_splits > 1 and plan.keys < 2100


@pytest.mark.parametrize("types", [("Q8_0", "Q5_1"), ("Q4_1", "float16")], ids=str)
def test_by_tiles(device, types, rng):
    """float32 queries: float32 throughout."""
    q, k, v = random_operands(rng, 4, 2, 9, 130, 96, 64, "float32")
    k, v = (
        x.astype(DTYPES[name]) if name in DTYPES else quant.quantize(x, name)
        for x, name in zip((k, v), types, strict=True)
    )
    seen = [x if isinstance(x, np.ndarray) else quant.dequantize(x) for x in (k, v)]
    options = random_options(rng, 4, 9, 130)
    expected = attention_float64(q, *seen, return_lse=True, **options)
    k, v = (x.to(device) if hasattr(x, "to") else lowlevel.asarray(x, device) for x in (k, v))
    for budget in ("1MiB", "100KiB", "60KiB"):
        check(device, q, k, v, expected, options, 2 * FLOAT32_BOUND, budget, str(types))


@pytest.mark.parametrize("order", ["reverse", "random", "lifo"])
def test_orders(order, rng):
    q, k, v = random_operands(rng, 4, 2, 40, 200, 64, 64, "bfloat16")
    k, v = (quant.quantize(x.astype("f4"), "Q4_0") for x in (k, v))
    expected = attention_float64(q, decoded(k, q), decoded(v, q), return_lse=True)
    with cudasim.settings(order=order):
        check("cudasim", q, k.to("cudasim"), v.to("cudasim"), expected, {}, HALF_BOUND, "70KiB")


@pytest.mark.parametrize("sizes", [(64, 64), (576, 512)], ids=str)
def test_checked(sizes, rng):
    """The kernels going on from a chunk of keys to the next, and split among blocks."""
    latent = sizes == (576, 512)
    q, k, v = random_operands(rng, 4, 1, 3, 200, *sizes, "float16")
    k = quant.quantize(k.astype("f4"), "Q8_0")
    values = decoded(k, q)
    options = {"sinks": np.ones(4, np.float32)}
    expected = attention_float64(q, values, values[..., : sizes[1]], return_lse=True, **options)
    k = k.to("cudasim")
    v_bytes = sizes[1] // k.format.block_weights * k.format.block_bytes
    v = quant.QuantTensor(k.data[..., :v_bytes], "Q8_0", (1, 200, sizes[1]))
    with lowlevel.Pool("120KiB" if latent else "20KiB", device="cudasim") as pool:
        with cudasim.settings(**CHECKED):
            out, _ = lowlevel.attention(
                lowlevel.asarray(q, "cudasim"), k, v, pool=pool, return_lse=True, **options
            )
        plan = plan_of(q, k, v, "cudasim", budget=pool.budget, v_in_k=True, out_dtype=q.dtype)
    assert plan.keys < 200
    assert_close(lowlevel.asnumpy(out).astype("f8"), expected[0], HALF_BOUND + 2.0**-11)


def test_no_keys(device, rng):
    q, k, v = random_operands(rng, 4, 2, 3, 0, 64, 64, "float16")
    k, v = (quant.QuantTensor(np.zeros((2, 0, 68), "u1"), "Q8_0", (2, 0, 64)) for _ in "kv")
    expected = np.zeros((4, 3, 64)), np.full((4, 3), -np.inf)
    check(device, q, k.to(device), v.to(device), expected, {}, HALF_BOUND, "1MiB")


def test_strided_rows(device, rng):
    """A cache of (token, head) rows, and more room behind each."""
    q, k, v = random_operands(rng, 4, 2, 5, 90, 64, 64, "float16")
    k, v = (quant.quantize(x.astype("f4"), "Q8_0") for x in (k, v))
    expected = attention_float64(q, decoded(k, q), decoded(v, q), return_lse=True)

    def apart(t):
        memory = np.zeros((90, 2, t.row_bytes + 4), np.uint8)
        memory[..., : t.row_bytes] = t.data.transpose(1, 0, 2)
        data = lowlevel.asarray(memory, device).transpose(1, 0, 2)[..., : t.row_bytes]
        return quant.QuantTensor(data, t.format, t.shape)

    for budget in ("1MiB", "40KiB"):
        check(device, q, apart(k), apart(v), expected, {}, HALF_BOUND, budget)


def test_scratch_grows_with_the_budget_and_fits_it():
    sizes = dict(n_head=128, n_tokens=2048, n_kv=163840, d_k=192, d_v=128, device="cudasim")
    types = dict(kv_dtype="Q8_0", q_dtype="bfloat16", out_dtype="bfloat16")
    scratch = []
    for budget in ("512KiB", "4MiB", "16MiB", "64MiB", "256MiB", None):
        plan = lowlevel.plan_attention(**sizes, **types, budget=budget)
        assert budget is None or plan.scratch_bytes <= plan.budget
        scratch.append(plan.scratch_bytes)
    assert scratch == sorted(scratch) and scratch[-1] < 256 << 20
    with pytest.raises(lowlevel.BudgetError, match="at least"):
        lowlevel.plan_attention(**sizes, **types, budget="16KiB")
