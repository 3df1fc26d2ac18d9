"""Random attention calls on a device, held against float64."""

import contextlib
from unittest import mock

import ml_dtypes
import numpy as np
from attention_cases import random_mask
from comparison import assert_close

import lowlevel
from lowlevel.attention import plan as planner
from lowlevel.attention.reference import attention_float64
from lowlevel.gpu.instances import FUSED_SHAPES
from lowlevel.gpu.kernel_device import KernelDevice

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
# 16-bit inputs and weights: error over the largest output.
HALF_BOUND = 2e-3


@contextlib.contextmanager
def products_by(way):
    """Within this context: "wgmma", the kernels that a device takes; "mma", none of one architecture."""
    if way == "wgmma":
        yield
        return
    of_any = lambda device, kernel: kernel.architecture is None  # noqa: E731
    with mock.patch.object(KernelDevice, "runs", of_any):
        forget_plans()
        yield
    forget_plans()


def forget_plans():
    """Plans are remembered by what a device has, which a test may change."""
    planner._checked_plan.cache_clear()
    planner._plan.cache_clear()
    planner._is_made_anew.cache_clear()


def bound_for(q, bound):
    """Twice the bound for bfloat16: its weights are rounded to 8 bits, by up to 2**-9 of each.

    Where all weights are alike (a tiny scale), so is their rounding: 2.5e-3 has been seen there.
    """
    return 2 * bound if q.dtype == DTYPES["bfloat16"] else bound


def random_operands(rng, n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, dtype):
    """[q, k, v] as NumPy arrays; scores have a standard deviation of 1.

    V lies inside K where a fused kernel wants it there.
    """
    shapes = (n_head, n_tokens, d_k), (n_head_kv, n_kv, d_k), (n_head_kv, n_kv, d_v)
    q, k, v = (rng.standard_normal(s, dtype=np.float32).astype(DTYPES[dtype]) for s in shapes)
    if (d_k, d_v) in FUSED_SHAPES and FUSED_SHAPES[d_k, d_v].latent:
        column = int(rng.choice([0, 8, d_k - d_v]))
        v = k[..., column : column + d_v]
    return [q, k, v]


def random_options(rng, n_head, n_tokens, n_kv):
    """Some of attention's options."""
    options = {"causal": bool(rng.random() < 0.7)}
    if rng.random() < 0.3:
        options["window"] = int(rng.integers(1, n_kv + 5))
    if rng.random() < 0.3:
        options["softcap"] = float(rng.choice([0.5, 5.0, 30.0]))
    if rng.random() < 0.3:
        options["alibi_slopes"] = rng.uniform(0, 0.5, n_head).astype(np.float32)
    if rng.random() < 0.3:
        options["sinks"] = rng.normal(0, 2, n_head).astype(np.float32)
    if rng.random() < 0.3:
        options["scale"] = float(rng.choice([0.02, -0.05, 0.0]))
    if rng.random() < 0.4:
        options["mask"] = random_mask(rng, n_head, n_tokens, n_kv)
    return options


def on_device(operands, device, put=lowlevel.asarray):
    """[q, k, v] on a device by ``put(array, device)``; V stays inside K if it lies there."""
    q, k, v = operands
    q_there, k_there = put(q, device), put(k, device)
    if not np.shares_memory(k, v):
        return [q_there, k_there, put(v, device)]
    column = (v.ctypes.data - k.ctypes.data) // k.itemsize
    return [q_there, k_there, k_there[..., column : column + v.shape[2]]]


def attend(device, operands, options, **more):
    """(out, lse) of a call on `device` as NumPy arrays; the pool's peak must be the plan's scratch."""
    q, k, v = on_device(operands, device)
    options = dict(options)
    if options.get("mask") is not None:
        options["mask"] = lowlevel.asarray(options["mask"], device)
    with lowlevel.Pool(more.pop("budget", "64MiB"), device=device) as pool:
        more.setdefault(
            "out", lowlevel.asarray(np.full((*q.shape[:2], v.shape[2]), np.nan, "f4"), device)
        )
        plan = lowlevel.plan_attention(
            n_head=q.shape[0], n_head_kv=k.shape[0], n_tokens=q.shape[1], n_kv=k.shape[1],
            d_k=q.shape[2], d_v=v.shape[2], budget=pool.budget, q_dtype=q.dtype,
            kv_dtype=(k.dtype, v.dtype), out_dtype=more["out"].dtype, device=device,
            v_in_k=np.shares_memory(operands[1], operands[2]),
        )  # fmt: skip
        out, lse = lowlevel.attention(q, k, v, pool=pool, return_lse=True, **options, **more)
        assert pool.peak == plan.scratch_bytes, plan
        return lowlevel.asnumpy(out), lowlevel.asnumpy(lse)


def check(device, operands, options, bound, what="", **more):
    """Fail unless a call agrees with float64."""
    out, lse = attend(device, operands, options, **more)
    bound = bound_for(operands[0], bound)
    expected, expected_lse = attention_float64(*operands, return_lse=True, **options)
    assert_close(out.astype(np.float64), expected, bound, f"{what} {sorted(options)}")
    assert_close(lse, expected_lse, bound, f"lse {what} {sorted(options)}", least=1)
