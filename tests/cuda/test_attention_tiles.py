"""Attention by tiles of scores (float32, odd sizes, mixed types), on the simulator and on a GPU."""

import re

import numpy as np
import pytest
from attention_calls import DTYPES, HALF_BOUND, attend, check, on_device, random_operands
from attention_cases import FLOAT32_BOUND, random_case
from comparison import assert_close
from quant_cases import CHECKED

import lowlevel
from lowlevel import cudasim, devices
from lowlevel.attention.kv_source import kv_type_of
from lowlevel.attention.reference import attention_float64
from lowlevel.gpu import instances, layout, loader

KERNELS = tuple(
    kernel
    for table in (instances.WIDEN, instances.SCAN, instances.SOFTMAX, instances.FINISH)
    for kernel in table.values()
)
# A score of some standard deviations more than 3 adds to float32's own error.
BOUND = 2 * FLOAT32_BOUND


def test_random_calls(device, rng):
    for number in range(30):
        case = random_case(rng, plain=number == 0)
        order = str(rng.choice(["fifo", "reverse", "random", "lifo"]))
        with cudasim.settings(order=order):
            check(device, (case.q, case.k, case.v), case.options, BOUND, f"{case} {order}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instance(dtype, device, launched, rng):
    operands = random_operands(rng, 2, 1, 5, 20, 9, 7, dtype)
    out = lowlevel.asarray(np.full((2, 5, 7), np.nan, DTYPES[dtype]), device)
    check(device, operands, {"softcap": 30.0}, HALF_BOUND + 2.0**-8, out=out)
    tables = instances.WIDEN, instances.SCAN, instances.SOFTMAX, instances.FINISH
    assert set(launched) == {table[dtype] for table in tables}


@pytest.mark.parametrize("budget", ["1MiB", "64KiB", "30KiB", "20KiB"])
def test_budgets(device, budget, rng):
    """Tiles of rows, keys and heads of all sizes."""
    for heads in ((6, 2), (4, 4)):
        operands = random_operands(rng, *heads, 17, 150, 40, 24, "float32")
        options = {"window": 90, "sinks": rng.normal(0, 2, heads[0]).astype(np.float32)}
        check(device, operands, options, BOUND, budget=budget)


def test_too_small_a_budget_says_what_would_do(device, rng):
    q, k, v = on_device(random_operands(rng, 2, 2, 5, 50, 40, 24, "float32"), device)
    with lowlevel.Pool("512", device=device) as pool:
        with pytest.raises(lowlevel.BudgetError, match="at least 20224 bytes"):
            lowlevel.attention(q, k, v, pool=pool)


@pytest.mark.parametrize("q_dtype", DTYPES)
@pytest.mark.parametrize("kv_dtypes", [("float16", "float32"), ("bfloat16", "float16")], ids=str)
def test_mixed_types(device, q_dtype, kv_dtypes, rng):
    operands = random_operands(rng, 4, 2, 20, 70, 40, 24, "float32")
    types = (q_dtype, *kv_dtypes)
    operands = [x.astype(DTYPES[dtype]) for x, dtype in zip(operands, types, strict=True)]
    check(device, operands, {}, BOUND)


@pytest.mark.parametrize("dtype", DTYPES)
def test_left_out_keys_may_hold_anything(device, dtype, rng):
    operands = _, k, v = random_operands(rng, 4, 2, 40, 150, 33, 24, dtype)
    mask = np.zeros((40, 150), np.float32)
    mask[:, 30:60] = -np.inf
    mask[5:, 100] = -np.inf
    k[:, 30:60], v[:, 30:60] = np.nan, np.nan
    k[:, 140:], v[:, 140:] = np.inf, -np.inf
    v[:, 100, 3], v[1, 100, 7], v[0, 101, 9] = np.inf, np.nan, -np.inf
    check(device, operands, {"mask": mask}, HALF_BOUND, budget="60KiB")


def test_any_strides(device, rng):
    def apart(x):
        n_head, n_rows, d = x.shape
        memory = np.zeros((n_rows, n_head, d + 3), x.dtype)
        memory[..., 1 : 1 + d] = x.transpose(1, 0, 2)
        return lowlevel.asarray(memory, device).transpose(1, 0, 2)[..., 1 : 1 + d]

    operands = random_operands(rng, 4, 2, 20, 70, 40, 24, "float32")
    out = apart(np.full((4, 20, 24), np.nan, np.float16))
    q, k, v = (apart(x) for x in operands)
    lowlevel.attention(q[:, ::-1], k, v, out=out[:, ::-1], causal=False)
    expected = attention_float64(*operands, causal=False)
    assert_close(lowlevel.asnumpy(out).astype(np.float64), expected, 2.0**-11 + BOUND)
    # keys and values backwards; one key's row for all of them
    again = lowlevel.attention(q, k[:, ::-1], v[:, ::-1], causal=False)
    assert_close(lowlevel.asnumpy(again), expected, BOUND)
    q_host, k_host, v_host = operands
    expected = attention_float64(q_host, np.repeat(k_host[:, :1], 70, 1), v_host, causal=False)
    stay = (
        np.lib.stride_tricks
        if device == "cudasim"
        else pytest.importorskip("cupy").lib.stride_tricks
    )
    alike = stay.as_strided(k, k.shape, (k.strides[0], 0, k.strides[2]))
    if device == "cudasim":
        alike = alike.view(cudasim.CudaSimArray)
    again = lowlevel.attention(q, alike, v, causal=False)
    assert_close(lowlevel.asnumpy(again), expected, BOUND)


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("gap, start", [(2, 1), (1, 0)])
def test_rows_between_elements_are_refused(device, name, dtype, gap, start, launched, rng):
    """Memory that no kernel can read as numbers of that size; the CPU's decoders read it."""
    q, k, v = random_operands(rng, 4, 2, 5, 20, 64, 64, dtype)
    row_bytes = 64 * k.itemsize
    memory = np.zeros((2, 20, row_bytes + gap), np.uint8)
    at = slice(start, start + row_bytes)
    odd = lowlevel.asarray(memory, device)[..., at].view(k.dtype)
    operands = dict(zip("qkv", on_device([q, k, v], device), strict=True))
    out = lowlevel.asarray(np.full((4, 5, 64), 7, np.float32), device)
    with pytest.raises(ValueError, match=f"{name}: the array is not aligned to its"):
        lowlevel.attention(**{**operands, name: odd}, out=out)
    assert not launched and (lowlevel.asnumpy(out) == 7).all()


def test_no_keys(device, rng):
    operands = random_operands(rng, 4, 2, 3, 0, 40, 24, "float32")
    check(device, operands, {}, BOUND)
    check(device, operands, {"sinks": np.ones(4, np.float32)}, BOUND)


@pytest.mark.parametrize("dtype", DTYPES)
def test_checked(dtype, rng):
    operands = random_operands(rng, 4, 2, 9, 40, 17, 12, dtype)
    operands[2][:, 35, 3] = np.nan
    with cudasim.settings(**CHECKED):
        check("cudasim", operands, {"softcap": 20.0}, BOUND, budget="25KiB")


def test_latent_values_inside_keys(device, rng):
    """V as a range of K's columns, at a width that no fused kernel has."""
    q, k, _ = random_operands(rng, 8, 1, 5, 60, 72, 8, "float32")
    check(device, (q, k, k[:, :, 8:]), {}, BOUND)


def test_plans_only_grow_with_the_budget():
    sizes = dict(n_head=32, n_head_kv=8, n_tokens=512, n_kv=16384, d_k=96, d_v=96, device="cudasim")
    scratch = [
        lowlevel.plan_attention(**sizes, budget=budget).scratch_bytes
        for budget in ("64KiB", "1MiB", "8MiB", "64MiB", "1GiB")
    ]
    assert scratch == sorted(scratch) and scratch[-1] <= 128 * 2**20
    for budget, taken in zip((2**16, 2**20, 2**23, 2**26), scratch, strict=False):
        assert budget / 4 <= taken <= budget


def test_a_tile_is_whole_groups_or_part_of_one():
    sizes = dict(n_head=12, n_head_kv=4, n_tokens=7, n_kv=40, d_k=9, d_v=9, n_threads=8)
    types = dict(q_dtype="float32", k_dtype="float32", v_dtype="float32")
    types |= dict(kv_types=(kv_type_of("float32"),) * 2, v_in_k=False, device="cudasim")
    for tile in layout.candidate_tiles({**sizes, **types}):
        assert tile.heads <= 3 or tile.heads % 3 == 0


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_blocks_are_whole_floats(device, rng):
    """They are taken as float32: bytes beside those would be planned and not taken."""
    for _ in range(300):
        n_head_kv, group, n_tokens, n_kv, d_k, d_v = map(int, rng.integers(1, 150, 6))
        sizes = dict(n_head=n_head_kv * group, n_head_kv=n_head_kv, n_tokens=n_tokens, n_kv=n_kv)
        kv_dtype = str(rng.choice(["float32", "float16"]))
        plan = lowlevel.plan_attention(
            **sizes, d_k=d_k, d_v=d_v, device=device, kv_dtype=kv_dtype, n_threads=3
        )
        assert all(n % 4 == 0 for _, n in plan.scratch), plan


def test_scores_of_a_row_fit_the_registers_of_its_threads():
    text = loader.source_text("lowlevel.gpu", "attention_softmax.cu")
    n_threads, n_held = (
        int(re.search(rf"\b{name} = (\d+)", text).group(1)) for name in ("kThreads", "kHeld")
    )
    assert n_threads * n_held == layout.MOST_KEYS


@pytest.mark.parametrize(
    "n_tokens, n_head, keys", [(1, 16, 2048), (2048, 16, 1024), (512, 16, 2048)]
)
def test_few_scores_leave_place_for_more_keys(n_tokens, n_head, keys):
    """Long chunks where all heads have place beside each other; else heads come first, for V's product."""
    plan = lowlevel.plan_attention(
        n_head=n_head, n_tokens=n_tokens, n_kv=32768, d_k=192, d_v=128, device="cudasim"
    )
    assert plan.keys == keys
    assert plan.heads == min(n_head, 2**24 // (n_tokens * keys))


def heads_far_apart(x, device):
    """A copy of `x`, two heads, on a GPU more than 2**32 bytes from one to the next; the simulator, which would copy
    all that lies between, gets less."""
    distance = (2**32 if device != "cudasim" else 2**16) + 256
    try:
        memory = devices.get(device).empty((2, distance), np.dtype(np.uint8))
    except MemoryError as reason:  # CuPy's OutOfMemoryError is one
        pytest.skip(str(reason))
    there = memory[:, : x[0].nbytes].view(x.dtype).reshape(x.shape)
    lowlevel.concat([lowlevel.asarray(x, device)], out=there)
    return there


@pytest.mark.parametrize("which", ["q", "k", "v", "out"])
@pytest.mark.parametrize(("dtype", "size"), [("float16", 64), ("float32", 40)])
def test_heads_far_apart(device, dtype, size, which, rng):
    """Fused and by tiles: strides are of 64 bits."""
    operands = random_operands(rng, 2, 2, 3, 70, size, size, dtype)
    expected = lowlevel.asnumpy(lowlevel.attention(*on_device(operands, device)))
    there, out = on_device(operands, device), None
    if which == "out":
        out = heads_far_apart(np.full_like(expected, np.nan), device)
    else:
        number = "qkv".index(which)
        there[number] = heads_far_apart(operands[number], device)
    np.testing.assert_array_equal(lowlevel.asnumpy(lowlevel.attention(*there, out=out)), expected)


def test_same_bits_again(device, rng):
    operands = random_operands(rng, 4, 2, 20, 70, 40, 24, "float32")
    first, second = (attend(device, operands, {})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.gpu
@pytest.mark.alone
def test_nothing_grows_beside_the_pool(rng):
    """Of all ways, once kernels and cuBLAS's handle are there."""
    cupy = pytest.importorskip("cupy")
    calls = [
        (random_operands(rng, 4, 2, 64, 4096, *sizes, dtype), dtype)
        for sizes, dtype in (
            ((192, 128), "float16"),
            ((576, 512), "bfloat16"),
            ((96, 80), "float32"),
        )
    ]
    calls = [(on_device(operands, "cuda:0"), dtype) for operands, dtype in calls]
    outs = [cupy.empty((4, 64, v.shape[2]), q.dtype) for (q, _, v), _ in calls]

    def run(pool):
        for ((q, k, v), _), out in zip(calls, outs, strict=True):
            lowlevel.attention(q, k, v, pool=pool, out=out)
        cupy.cuda.Device().synchronize()

    with lowlevel.Pool("64MiB", device="cuda:0") as pool:
        run(pool)
        before = cupy.cuda.runtime.memGetInfo()[0]
        held = cupy.get_default_memory_pool().total_bytes()
        run(pool)
        assert cupy.cuda.runtime.memGetInfo()[0] == before
        assert cupy.get_default_memory_pool().total_bytes() == held
