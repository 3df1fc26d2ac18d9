"""kqcap itself: the public calls, with a pool and an output that are reused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import lowlevel
import quant
from lowlevel.cpu import bfloat

from . import Variant, inputs


def describe() -> dict[str, Any]:
    from lowlevel.cpu import simd

    return dict(simd=simd.LEVEL, vnni=simd.HAS_VNNI)


def set_threads(n_threads: int) -> None:
    pass


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    return _PREPARE[case["kind"]](case["sizes"], data)


def _tensor(sizes, blocks):
    return quant.QuantTensor(blocks, sizes["qtype"], (sizes["rows"], sizes["columns"]))


def _dequantize(sizes, data):
    tensor = _tensor(sizes, data["blocks"])
    out = inputs.aligned(tensor.shape)
    return {
        "ours": Variant(
            lambda n_threads: quant.dequantize(tensor, out=out, n_threads=n_threads), lambda: out
        )
    }


def _product(sizes, data):
    from quant.matmul import matmul, matmul_scratch_bytes

    tensors = [_tensor(sizes, b) for b in inputs.copies(data["blocks"], sizes["copies"])]
    x, out = data["x"], inputs.aligned((sizes["n"], sizes["rows"]))
    most = max(matmul_scratch_bytes(sizes["n"], tensors[0], n_threads=n) for n in (1, 2, None))
    pool = lowlevel.Pool(most)
    turn = itertools.cycle(tensors)

    def call(n_threads):
        matmul(x, next(turn), pool=pool, out=out, n_threads=n_threads)

    return {"ours": Variant(call, lambda: out, lambda: dict(scratch_bytes=pool.peak))}


def _attention(sizes, data):
    half = {name: array.astype(np.float16) for name, array in data.items() if name != "q"}
    variants = {
        "ours": _attention_variant(sizes, data["q"], data),
        "ours f16": _attention_variant(sizes, data["q"], half),
    }
    if bfloat.AVAILABLE and sizes["n_tokens"] > 1:  # else it is "ours" again
        bf16 = _attention_variant(sizes, data["q"], data, precision="bf16")
        variants["ours bf16"] = bf16
    return variants


def _attention_variant(sizes, q, kv, **options):
    k, v = kv["k"], inputs.value_of(kv, sizes)
    out = inputs.aligned((*q.shape[:2], sizes["d_v"]))
    pool = lowlevel.Pool("256MiB")
    peaks = {}

    def call(n_threads):
        lowlevel.attention(q, k, v, pool=pool, out=out, n_threads=n_threads, **options)
        peaks[n_threads] = pool.peak

    return Variant(call, lambda: out, lambda: dict(scratch_bytes=max(peaks.values())))


_PREPARE = {
    "dequantize": _dequantize,
    "matvec": _product,
    "gemm": _product,
    "attention": _attention,
}
