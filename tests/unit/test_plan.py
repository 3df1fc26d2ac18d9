"""plan_attention: the PR's examples, exact bytes, and what does not fit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quant  # noqa: F401  (plans know quantised K and V by name from then on)
from lowlevel import BudgetError, plan_attention
from lowlevel.attention.call import Operands
from lowlevel.attention.passes import passes

GIB = 2**30
R1 = dict(n_head=128, n_tokens=512, d_k=192, d_v=128)


@pytest.mark.parametrize(
    ("n_kv", "n_steps", "heads"), [(8192, 1, 128), (16000, 2, 65), (24000, 3, 43), (163000, 22, 6)]
)
def test_examples_of_the_pr(n_kv, n_steps, heads):
    plan = plan_attention(**R1, n_kv=n_kv, budget="2GiB", method="steps")
    assert (plan.n_steps, plan.heads) == (n_steps, heads)
    assert plan.heads == min(128, 2 * GIB // (512 * n_kv * 4))
    assert plan.kq_bytes == plan.heads * 512 * n_kv * 4 <= 2 * GIB
    assert plan.scratch_bytes <= 2 * GIB


def test_exactly_the_budget_is_not_over_it():
    plan = plan_attention(**R1, n_kv=8192, budget="2GiB", method="steps")
    assert plan.scratch_bytes == 2 * GIB
    short = plan_attention(**R1, n_kv=8192, budget=2 * GIB - 1, method="steps")
    assert (short.heads, short.n_steps) == (127, 2)


def test_one_token_is_one_step():
    plan = plan_attention(**{**R1, "n_tokens": 1}, n_kv=163000, budget="2GiB", method="steps")
    assert plan.n_steps == 1
    assert plan.kq_bytes == 128 * 163000 * 4


def test_steps_below_one_head_names_what_works():
    with pytest.raises(BudgetError, match="at least 1342177280 bytes") as caught:
        plan_attention(
            n_head=128, n_tokens=2048, n_kv=163840, d_k=192, d_v=128, budget="1GiB", method="steps"
        )
    needed = caught.value.requested
    plan = plan_attention(
        n_head=128, n_tokens=2048, n_kv=163840, d_k=192, d_v=128, budget=needed, method="steps"
    )
    assert (plan.heads, plan.scratch_bytes) == (1, needed)


shapes = st.fixed_dictionaries(
    {
        "n_head_kv": st.sampled_from([1, 2, 5, 8, 20, 128]),
        "group": st.sampled_from([1, 2, 3, 4, 16, 128]),
        "n_tokens": st.sampled_from([1, 2, 7, 31, 32, 33, 100, 512, 2048, 5000]),
        "n_kv": st.sampled_from([0, 1, 9, 255, 4096, 16384, 163840]),
        "d_k": st.sampled_from([1, 5, 64, 128, 192, 576, 1000]),
        "d_v": st.sampled_from([1, 33, 64, 128, 512]),
        "kv_dtype": st.sampled_from(["float32", "float16", "Q8_0", ("float16", "Q8_0")]),
        "n_threads": st.sampled_from([1, 2, 3, 64]),
        "v_in_k": st.booleans(),
        "method": st.sampled_from(["auto", "steps"]),
    }
)


def sizes_of(shape):
    shape = dict(shape)
    shape["n_head"] = shape["n_head_kv"] * shape.pop("group")
    pair = shape["kv_dtype"] if isinstance(shape["kv_dtype"], tuple) else (shape["kv_dtype"],) * 2
    for width, dtype in zip(("d_k", "d_v"), pair, strict=True):
        if dtype == "Q8_0":
            shape[width] = -(-shape[width] // 32) * 32
    shape["v_in_k"] &= pair[0] == pair[1] and shape["d_v"] <= shape["d_k"]
    return shape


@settings(max_examples=1500, deadline=None)
@given(shapes, st.integers(0, 2**34))
def test_never_over_the_budget(shape, budget):
    sizes = sizes_of(shape)
    try:
        plan = plan_attention(**sizes, budget=budget)
    except BudgetError as error:
        assert error.requested > budget
        least = plan_attention(**sizes, budget=error.requested)
        assert least.scratch_bytes <= error.requested
        with pytest.raises(BudgetError):
            plan_attention(**sizes, budget=error.requested - 256)
        return
    assert plan.scratch_bytes <= budget
    assert plan.scratch_bytes == sum(-(-n // 256) * 256 for _, n in plan.scratch)
    assert 1 <= plan.n_workers <= sizes["n_threads"]
    assert 1 <= plan.heads <= sizes["n_head"]
    assert 1 <= plan.rows <= sizes["n_tokens"]


@settings(max_examples=300, deadline=None)
@given(shapes)
def test_workers_go_before_tiles_shrink(shape):
    """Every budget that holds the preferred tile for one worker gives the preferred tile."""
    sizes = {**sizes_of(shape), "method": "auto"}
    free = plan_attention(**sizes)
    fixed = sum(n for tag, n in free.scratch if tag == "partial results")
    alone = {tag: n // free.n_workers for tag, n in free.scratch if tag != "partial results"}
    one_worker = sum(-(-n // 256) * 256 for n in [fixed, *alone.values()])
    plan = plan_attention(**sizes, budget=one_worker)
    assert (plan.heads, plan.rows, plan.keys, plan.n_splits) == (
        free.heads,
        free.rows,
        free.keys,
        free.n_splits,
    )
    assert plan.n_workers == 1


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([None, "64KiB", "1MiB", "100MiB"]))
def test_passes_cover_every_row_once(shape, budget):
    """Of a device's tiles, which walk the call by `passes`; each reads the K/V heads of its query heads."""
    sizes = {**sizes_of(shape), "n_kv": min(shape["n_kv"], 300), "device": "cudasim"}
    sizes["method"] = "auto"
    sizes["n_tokens"] = min(sizes["n_tokens"], 100)
    sizes["n_head"] = sizes["n_head"] // sizes["n_head_kv"] * min(sizes["n_head_kv"], 3)
    sizes["n_head_kv"] = min(sizes["n_head_kv"], 3)
    try:
        plan = plan_attention(**sizes, budget=budget)
    except BudgetError:
        return
    shape = sizes["n_head"], sizes["n_tokens"], 1
    counts = np.zeros(shape, np.int8)
    operands = Operands(
        q=counts, k=None, v=None, out=counts, lse=None, v_column=-1, mask=None, alibi_slopes=None,
        sinks=None, causal=True, window=None, scale=1.0, softcap=None,
    )  # fmt: skip
    group, n_steps = sizes["n_head"] // sizes["n_head_kv"], 0
    for each in passes(plan, operands, plan.heads, plan.rows):
        each.operands.q[...] += 1
        n_heads = each.operands.q.shape[0]
        assert (each.kv_heads.stop - each.kv_heads.start) * group >= n_heads
        n_steps += -(-sizes["n_kv"] // plan.keys)
    assert (counts == 1).all()
    if sizes["n_tokens"]:
        assert n_steps == plan.n_steps


def test_a_plan_is_plain_data():
    plan = plan_attention(**R1, n_kv=163000, budget="2GiB")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["scratch_bytes"] == plan.scratch_bytes
    assert data["kq_bytes"] == plan.kq_bytes
    assert sum(block["bytes"] for block in data["scratch"]) <= plan.scratch_bytes


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"n_head": 0}, ValueError, "n_head"),
        ({"n_head": 2.0}, TypeError, "n_head"),
        ({"n_head_kv": 3}, ValueError, "n_head_kv: must divide n_head; 3 does not divide 128"),
        ({"n_tokens": -1}, ValueError, "n_tokens"),
        ({"n_kv": True}, TypeError, "n_kv"),
        ({"n_kv": 2**31 - 63}, ValueError, "n_kv: expected an int, 0 to 2147483584"),
        ({"n_tokens": 2**62}, ValueError, "n_tokens: expected an int, 0 to 2147483584"),
        ({"n_head": 10**15, "n_head_kv": 10**14 - 1}, ValueError, "n_head: expected"),
        ({"n_head": 2**31 - 99, "n_head_kv": 2**30}, ValueError, "n_head_kv: .*for example [0-9]+"),
        ({"n_threads": 10**9}, ValueError, "n_threads: expected an int, 1 to"),
        ({"d_k": 0}, ValueError, "d_k"),
        ({"d_v": "128"}, TypeError, "d_v"),
        ({"budget": -1}, ValueError, "budget"),
        ({"budget": float("nan")}, ValueError, "budget"),
        ({"budget": "lots"}, ValueError, "budget"),
        ({"budget": None, "method": "fast"}, ValueError, "method"),
        ({"assemble": "concat"}, ValueError, "assemble"),
        ({"method": "steps", "assemble": "glue"}, ValueError, "assemble"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"n_threads": 1.5}, TypeError, "n_threads"),
        ({"kv_dtype": ("float32",) * 3}, ValueError, "kv_dtype"),
        ({"kv_dtype": 7}, TypeError, "dtype"),
        (
            {"kv_dtype": "nope"},
            ValueError,
            "kv_dtype: expected one of float32, .*Q8_0.*; got 'nope'",
        ),
        ({"kv_dtype": ("float32", "float64")}, ValueError, "kv_dtype: .*got 'float64'"),
        ({"kv_dtype": "Q8_0", "d_k": 33}, ValueError, "d_k: must be a multiple of 32, .*; got 33"),
        ({"kv_dtype": "IQ4_NL", "d_v": 48}, ValueError, "d_v: must be a multiple of 32"),
        ({"v_in_k": True, "d_v": 193}, ValueError, "v_in_k"),
        ({"v_in_k": True, "kv_dtype": ("float32", "float16")}, ValueError, "v_in_k"),
        ({"budget": 10**400}, ValueError, "budget: .*below 2"),
        ({"out_dtype": "float16"}, ValueError, "out_dtype"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        plan_attention(**{**R1, "n_kv": 100, **change})
