"""Attention on a device, held against float64 and timed beside peers on the same inputs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import lowlevel
import quant
from lowlevel import devices
from lowlevel.attention.reference import attention_float64

from ..tables import mib
from . import device_arrays as arrays
from . import timing
from .device_memory import peers_text
from .growing_table import Column


@dataclasses.dataclass(frozen=True)
class Shape:
    """Heads, head sizes and types of a case."""

    name: str
    n_head: int
    n_head_kv: int
    d_k: int
    d_v: int
    q_type: str = "float16"
    kv_type: str = "float16"
    v_in_k: bool = False


SHAPES = (
    Shape("192/128 128 heads", 128, 128, 192, 128),
    Shape("192/128 16 heads", 16, 16, 192, 128),
    Shape("128/128 GQA 32/8", 32, 8, 128, 128),
    Shape("latent 576/512 128 heads", 128, 1, 576, 512, v_in_k=True),
    Shape("192/128 16 heads Q8_0", 16, 16, 192, 128, kv_type="Q8_0"),
    Shape("192/128 16 heads float32", 16, 16, 192, 128, "float32", "float32"),
)


def measure(
    device: str = "cuda:0",
    shapes: Any = SHAPES,
    n_kvs: Sequence[int] = (16384, 163840),
    n_tokens: Sequence[int] = (2048,),
    budgets: Sequence[str] = ("64MiB",),
    rounds: int = 5,
    peers: bool = False,
    show: Callable[[dict[str, Any]], object] = lambda row: None,
) -> list[dict[str, Any]]:
    """Time attention; results are held against float64 on sampled rows.

    Returns
    -------
    list of dict
        shape, n_tokens, n_kv, budget, scratch (bytes), seconds (of each round),
        tflops (multiply-adds counted as two, keys left out by causality not counted), error (over the
        largest output), first_grown and grown (bytes of the GPU's memory that the first call of all
        budgets, which loads kernels, and later ones took beside the pools; None on the simulator), and
        with `peers` their seconds by name.
    """
    rows = []
    for shape in shapes:
        for n_kv in n_kvs:
            for n in n_tokens:
                for row in _measure(device, shape, n, n_kv, budgets, rounds, peers):
                    show(row)
                    rows.append(row)
    return rows


def _measure(device, shape, n_tokens, n_kv, budgets, rounds, peers):
    q, k, v = _operands(device, shape, n_tokens, n_kv)
    out = devices.get(device).empty((shape.n_head, n_tokens, shape.d_v), q.dtype)
    calls, plans, pools = {}, {}, []
    for budget in budgets:
        pool = lowlevel.Pool(budget, device=device)
        pools.append(pool)
        calls[budget] = lambda pool=pool: lowlevel.attention(q, k, v, pool=pool, out=out)
    others = {}
    if peers and shape.q_type == shape.kv_type == "float16" and not shape.v_in_k:
        from . import device_peers

        others = device_peers.attention(q, k, v)
    try:
        free = [arrays.free_bytes(device)]
        for call in calls.values():
            call()
        free.append(arrays.free_bytes(device))
        times = timing.interleaved(calls, rounds, device)
        free.append(arrays.free_bytes(device))
        for budget, pool in zip(budgets, pools, strict=True):
            plans[budget] = pool.peak
        calls[budgets[-1]]()
        error = _error(q, k, v, out)
    finally:
        for pool in pools:
            pool.close()
    compared = {}
    for name, call in others.items():  # one by one: they take much memory
        try:
            compared[name] = timing.interleaved({name: call}, min(rounds, 3), device)[name]
        except RuntimeError as reason:
            compared[name] = str(reason).splitlines()[0]
        device_peers.give_back_memory()
    first_grown, grown = (None, None) if free[0] is None else (free[0] - free[1], free[1] - free[2])
    flop = 2 * shape.n_head * (shape.d_k + shape.d_v) * _kept(n_tokens, n_kv)
    return [
        dict(
            shape=shape.name, n_tokens=n_tokens, n_kv=n_kv, budget=budget, scratch=plans[budget],
            seconds=times[budget], tflops=flop / statistics.median(times[budget]) / 1e12,
            error=error, flop=flop, first_grown=first_grown, grown=grown, peers=compared,
        )
        for budget in budgets
    ]  # fmt: skip


def _kept(n_tokens, n_kv):
    """Keys that all queries see together."""
    return n_tokens * n_kv - n_tokens * (n_tokens - 1) // 2


def _operands(device, shape, n_tokens, n_kv):
    s = shape
    q = arrays.normal(device, (s.n_head, n_tokens, s.d_k), s.q_type, 1)
    if s.kv_type in ("float32", "float16"):
        k = arrays.normal(device, (s.n_head_kv, n_kv, s.d_k), s.kv_type, 2)
        if s.v_in_k:
            return q, k, k[..., : s.d_v]
        return q, k, arrays.normal(device, (s.n_head_kv, n_kv, s.d_v), s.kv_type, 3)
    return q, *(
        arrays.blocks(device, s.kv_type, (s.n_head_kv, n_kv, d), seed)
        for d, seed in ((s.d_k, 4), (s.d_v, 5))
    )


def _error(q, k, v, out):
    """Of sampled heads and rows, over the largest value."""
    n_head, n_tokens, _ = q.shape
    group = n_head // k.shape[0]
    rows = sorted({0, n_tokens // 3, n_tokens - 2, n_tokens - 1} & set(range(n_tokens)))
    worst = 0.0
    for head in {0, n_head - 1}:
        q_head = lowlevel.asnumpy(q[head : head + 1]).astype(np.float32)
        k_head, v_head = (_values(x, head // group) for x in (k, v))
        expected = attention_float64(q_head, k_head, v_head, rows=rows)[0]
        actual = lowlevel.asnumpy(out[head : head + 1])[0].astype(np.float64)[rows]
        worst = max(worst, np.abs(actual - expected).max() / np.abs(expected).max())
    return float(worst)


def _values(x, head):
    if isinstance(x, quant.QuantTensor):
        return arrays.host_values(x[head : head + 1])
    return lowlevel.asnumpy(x[head : head + 1]).astype(np.float32)


def columns(has_peers: bool) -> list[Column]:
    """Of the table of rows, which appear as they are measured."""
    found = [
        Column(
            "attention", lambda row: row["shape"], max(len(shape.name) for shape in SHAPES), "left"
        ),
        Column("u", lambda row: str(row["n_tokens"]), 5),
        Column("n", lambda row: str(row["n_kv"]), 6),
        Column("budget", lambda row: row["budget"], 7),
        Column("scratch", lambda row: mib(row["scratch"], 1), 7),
        Column("ms", lambda row: f"{statistics.median(row['seconds']) * 1e3:.2f}", 8),
        Column("TFLOP/s", lambda row: f"{row['tflops']:.1f}"),
        Column("error", lambda row: f"{row['error']:.1e}", 7),
    ]
    return [*found, Column("peers, ms", peers_text, 40, "left")] if has_peers else found
