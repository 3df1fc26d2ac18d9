"""Method "steps": ik_llama.cpp's -amb, whole K*Q of some heads at a time, by NumPy's BLAS.

It is here to compare with, so it is done as well as it can be: BLAS reads K and V where they lie,
softmax is one fused pass in place, and each step writes its part of the output. With
``assemble="concat"`` step results are joined as in the PR instead, by one concat a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel import devices
from lowlevel.attention.plan import step_chunk_stride
from lowlevel.concat import concat

from . import steps_kernel, threads
from .blas import blas_threads
from .fill import fill_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowlevel.attention.call import Operands
    from lowlevel.attention.plan import AttentionPlan


# Query rows in one matrix product: a usual u-batch whole, and bounded copies of any more.
MATMUL_ROWS = 2048


def run(
    plan: AttentionPlan, operands: Operands, scratch: Mapping[str, np.ndarray], call: np.ndarray
) -> None:
    """As `lowlevel.cpu.attention.run`; `call`: the kernel's view of the operands."""
    kq = scratch.get("kq", np.empty(0, np.float32))
    converter = _Converter(plan, operands, scratch)
    joiner = _Joiner(plan, operands.out, scratch) if plan.assemble == "concat" else None
    with np.errstate(all="ignore"):  # NaN in unused cache slots is no news
        _run_steps(plan, operands, kq, converter, joiner, call)


def _run_steps(plan, operands, kq, converter, joiner, call):
    for head in range(0, plan.n_head, plan.heads):
        n_heads = min(plan.heads, plan.n_head - head)
        step = kq[: n_heads * plan.n_tokens * plan.n_kv].reshape(n_heads, plan.n_tokens, plan.n_kv)
        target = operands.out[head : head + n_heads] if joiner is None else joiner.step(n_heads)
        with blas_threads(plan.n_threads):
            for i in range(n_heads):
                converter.scores(head + i, step[i])
        counter = np.zeros(1, np.int64)
        threads.run_workers(
            min(plan.n_threads, n_heads * plan.n_tokens),
            lambda _, head=head, n_heads=n_heads, counter=counter: steps_kernel.softmax_rows(
                kq, call, head, n_heads, counter
            ),
            counter,
        )
        with blas_threads(plan.n_threads):
            for i in range(n_heads):
                converter.products(head + i, step[i], target[i])
        if joiner is not None:
            joiner.join(target)


def _matmul(a, b, out):
    """out = a @ b, some rows at a time: NumPy copies rows of `a` and `out` that BLAS cannot read."""
    for row in range(0, len(a), MATMUL_ROWS):
        rows = slice(row, row + MATMUL_ROWS)
        np.matmul(a[rows], b, out=out[rows])


class _Converter:
    """K*Q and weights times V of one head; K and V that BLAS cannot read come a chunk at a time."""

    def __init__(self, plan, operands, scratch):
        self.operands, self.group = operands, plan.n_head // plan.n_head_kv
        self.n_tokens, self.n_kv = plan.n_tokens, plan.n_kv
        self.chunk, self.part = scratch.get("kv chunk"), scratch.get("kqv part")
        self.finite = {}  # K/V head -> whether V holds finite numbers only
        self.own, self.n_threads = scratch.get("decode"), plan.n_threads
        self.stride = step_chunk_stride(plan.kv_types, plan.d_k, plan.d_v)

    def _chunks(self, source, kv_head):
        """(keys, their decoded rows) over all keys."""
        width = source.shape[2]
        stride = self.stride if source.type.in_chunks else width
        n = len(self.chunk) // self.stride
        decode = None
        if source.type.in_chunks:
            heads = slice(kv_head, kv_head + 1)
            decode = source.reader(devices.get("cpu"), heads, self.own, self.n_threads)
        for key in range(0, self.n_kv, n):
            keys = slice(key, min(key + n, self.n_kv))
            rows = self.chunk[: (keys.stop - key) * stride].reshape(-1, stride)[:, :width]
            if decode is not None:
                decode(keys, rows[None])
            else:
                fill_rows(source, kv_head, keys, rows)
            yield keys, rows

    def scores(self, head, kq):
        """kq (n_tokens, n_kv) = q . k, unscaled."""
        if self.n_kv == 0:
            return
        q, kv_head = self.operands.q[head], head // self.group
        if self.chunk is None:
            _matmul(q, self.operands.k.data[kv_head].T, out=kq)
            return
        for keys, rows in self._chunks(self.operands.k, kv_head):
            _matmul(q, rows.T, out=kq[:, keys])

    def products(self, head, weights, out):
        """out (n_tokens, d_v) = weights . v."""
        if self.n_kv == 0:
            out[...] = 0
            return
        kv_head = head // self.group
        if self.chunk is None:
            self._product(weights, self.operands.v.data[kv_head], out, kv_head)
            return
        out[...] = 0
        part = self.part.reshape(out.shape)
        for keys, rows in self._chunks(self.operands.v, kv_head):
            self._product(weights[:, keys], rows, part, (kv_head, keys.start))
            np.add(out, part, out=out)

    def _product(self, weights, v, out, key):
        if key not in self.finite:
            # A sum is finite unless a term is not (or it overflows, and the careful way is right too).
            self.finite[key] = bool(np.isfinite(v.sum(dtype=np.float64)))
        if self.finite[key]:
            _matmul(weights, v, out=out)
        else:
            steps_kernel.products_carefully(weights, v, out)


class _Joiner:
    """Step results joined by a concat a step, each of which copies all heads so far again."""

    def __init__(self, plan, out, scratch):
        self.shape, self.out, self.n_head = (plan.n_tokens, plan.d_v), out, plan.n_head
        self.result, self.next = scratch["step result"], scratch["joined next"]
        self.joined, self.heads = scratch["joined"], 0

    def _view(self, block, heads):
        n = heads * self.shape[0] * self.shape[1]
        return block[:n].reshape(heads, *self.shape)

    def step(self, n_heads):
        return self._view(self.result, n_heads)

    def join(self, result):
        heads = self.heads + len(result)
        target = self.out if heads == self.n_head else self._view(self.next, heads)
        if self.heads:
            concat([self._view(self.joined, self.heads), result], axis=0, out=target)
        else:
            target[...] = result
        self.joined, self.next, self.heads = self.next, self.joined, heads
