"""Attention as one writes it in NumPy: K*Q of all heads at once, or of as many as fit 64 MiB."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Variant, inputs

SPLIT_BYTES = 64 * 2**20
# What must stay free beside the scores: the other peers make their inputs at the same time.
MEMORY_MARGIN = 2**31

_limits = None


def describe() -> dict[str, Any]:
    import threadpoolctl

    blas = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    about = blas[0] if blas else {}
    return dict(numpy=np.__version__, blas=f"{about.get('internal_api')} {about.get('version')}")


def set_threads(n_threads: int) -> None:
    import threadpoolctl

    global _limits
    _limits = threadpoolctl.threadpool_limits(n_threads, user_api="blas")


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    if case["kind"] != "attention":
        return {}
    sizes = case["sizes"]
    head_bytes = 4 * sizes["n_tokens"] * sizes["n_kv"]
    some = max(1, SPLIT_BYTES // head_bytes)
    variants = {"numpy": _variant(sizes, data, sizes["n_head"])}
    if some < sizes["n_head"]:
        variants["numpy split"] = _variant(sizes, data, some)
    return variants


def _variant(sizes, data, heads_at_once):
    from ...process import available_bytes

    n_bytes = 4 * heads_at_once * sizes["n_tokens"] * sizes["n_kv"]
    free = available_bytes()
    if free is not None and n_bytes > free - MEMORY_MARGIN:
        return f"its scores would take {n_bytes / 2**30:.1f} GiB, more than is free"
    attention = _Attention(sizes, data, heads_at_once)
    return Variant(attention.run, lambda: attention.out, dict(scratch_bytes=n_bytes))


class _Attention:
    def __init__(self, sizes, data, heads_at_once):
        n_head_kv, n_tokens, n_kv = (sizes[name] for name in ("n_head_kv", "n_tokens", "n_kv"))
        group = sizes["n_head"] // n_head_kv
        self.q = data["q"].reshape(n_head_kv, group, n_tokens, -1)
        self.k, self.v = data["k"], inputs.value_of(data, sizes)
        self.scale = np.float32(sizes["d_k"] ** -0.5)
        hidden = np.arange(n_kv)[None] > np.arange(n_kv - n_tokens, n_kv)[:, None]
        self.mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
        self.out = np.zeros((sizes["n_head"], n_tokens, sizes["d_v"]), np.float32)
        # whole K/V heads at once, or parts of one head's group
        self.kv_step = max(1, heads_at_once // group)
        self.group_step = group if heads_at_once >= group else heads_at_once
        self.scores = np.zeros(
            (min(self.kv_step, n_head_kv), self.group_step, n_tokens, n_kv), np.float32
        )

    def run(self, n_threads):
        n_head_kv, group, n_tokens, _ = self.q.shape
        out = self.out.reshape(n_head_kv, group, n_tokens, -1)
        for first in range(0, n_head_kv, self.kv_step):
            kv = slice(first, first + self.kv_step)
            for start in range(0, group, self.group_step):
                heads = slice(start, start + self.group_step)
                self._some(self.q[kv, heads], self.k[kv], self.v[kv], out[kv, heads])

    def _some(self, q, k, v, out):
        n, some, n_tokens, d_k = q.shape
        s = self.scores[:n, :some]
        rows = s.reshape(n, some * n_tokens, -1)
        np.matmul(q.reshape(n, some * n_tokens, d_k), k.transpose(0, 2, 1), out=rows)
        s *= self.scale
        s += self.mask
        s -= s.max(axis=-1, keepdims=True)
        np.exp(s, out=s)
        total = s.sum(axis=-1, keepdims=True)
        out[...] = np.matmul(rows, v).reshape(out.shape)
        out /= total
