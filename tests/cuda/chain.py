"""A layer of a model from norm to experts on a device, every buffer given: what a CUDA graph may hold."""

import dataclasses
from typing import Any

import numpy as np
from matmul_cases import random_tensor, weights_of

import lowlevel
from lowlevel import asarray, asnumpy, ops
from lowlevel.attention.reference import attention_float64
from quant import QuantTensor, matmul

EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    n_tokens: int
    n_ctx: int = 640
    n_head: int = 4
    n_head_kv: int = 2
    d: int = 64
    n_embd: int = 256
    n_ff: int = 64
    n_expert: int = 8
    n_used: int = 2
    block_type: str = "Q8_0"


class Layer:
    """Weights and buffers on a device; `run` is one pass over the tokens whose rows are in `x`.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : Sizes
    dtype : numpy.dtype
        Of activations and of the K/V cache.
    device : str
    """

    def __init__(self, rng: Any, sizes: Sizes, dtype: Any, device: str) -> None:
        self.sizes, self.device = sizes, device
        s, heads = sizes, sizes.n_head * sizes.d

        def buffer(*shape, dtype=dtype):
            return asarray(np.zeros(shape, dtype), device)

        kv = s.n_head_kv * s.d
        self.host = {}
        for name, shape in {
            "q": (heads, s.n_embd), "k": (kv, s.n_embd), "v": (kv, s.n_embd), "o": (s.n_embd, heads),
            "gate": (s.n_expert, s.n_ff, s.n_embd), "up": (s.n_expert, s.n_ff, s.n_embd),
            "down": (s.n_expert, s.n_embd, s.n_ff),
        }.items():  # fmt: skip
            self.host[name] = small_tensor(rng, s.block_type, *shape)
        router = rng.standard_normal((s.n_expert, s.n_embd), np.float32) / 16
        self.host["router"] = QuantTensor(router.view(np.uint8), "F32", router.shape)
        self.there = {name: t.to(device) for name, t in self.host.items()}
        self.norms = [rng.standard_normal(s.n_embd, np.float32) for _ in range(2)]
        self.norms_there = [asarray(norm, device) for norm in self.norms]
        self.frequencies = ops.rope_frequencies(s.d).to(device)
        self.x, self.normed, self.added = (buffer(s.n_tokens, s.n_embd) for _ in range(3))
        self.q, self.k, self.v = (buffer(s.n_tokens, n) for n in (heads, kv, kv))
        self.attended = buffer(s.n_tokens, heads)
        self.cache_k, self.cache_v = (buffer(s.n_head_kv, s.n_ctx, s.d) for _ in range(2))
        self.logits = buffer(s.n_tokens, s.n_expert, dtype=np.float32)
        self.ids = buffer(s.n_tokens, s.n_used, dtype=np.int32)
        self.shares = buffer(s.n_tokens, s.n_used, dtype=np.float32)
        n_rows = s.n_tokens * s.n_used
        self.of_token = asarray(np.arange(n_rows, dtype=np.int32) // s.n_used, device)
        self.rows, self.results = (buffer(n_rows, s.n_embd) for _ in range(2))
        self.gate_up, self.active = buffer(n_rows, 2 * s.n_ff), buffer(n_rows, s.n_ff)
        self.positions, self.n_kv = buffer(s.n_tokens, dtype=np.int32), buffer(1, dtype=np.int32)

    def heads(self, array):
        """(n_tokens, heads * d) as (heads, n_tokens, d)."""
        return array.reshape(self.sizes.n_tokens, -1, self.sizes.d).transpose(1, 0, 2)

    def run(self, pool):
        s, w = self.sizes, self.there
        ops.rms_norm(self.x, self.norms_there[0], eps=EPS, out=self.normed)
        for name in "qkv":
            matmul(self.normed, w[name], pool=pool, out=getattr(self, name))
        q, k, v = map(self.heads, (self.q, self.k, self.v))
        ops.rope(q, self.positions, self.frequencies)
        ops.rope(k, self.positions, self.frequencies)
        ops.put_rows(k, self.positions, self.cache_k)
        ops.put_rows(v, self.positions, self.cache_v)
        lowlevel.attention(
            q, self.cache_k, self.cache_v, n_kv=self.n_kv, pool=pool, out=self.heads(self.attended)
        )
        matmul(self.attended, w["o"], pool=pool, out=self.added)
        ops.add(self.x, self.added)
        ops.rms_norm(self.x, self.norms_there[1], eps=EPS, out=self.normed)
        matmul(self.normed, w["router"], pool=pool, out=self.logits)
        ops.top_k_routing(self.logits, self.ids, self.shares)
        ops.gather_rows(self.normed, self.of_token, self.rows)
        experts = self.ids.reshape(-1)
        pair = (w["gate"], w["up"])
        matmul(self.rows, pair, pool=pool, experts=experts, out=self.gate_up)
        ops.swiglu(self.gate_up[:, : s.n_ff], self.gate_up[:, s.n_ff :], out=self.active)
        matmul(self.active, w["down"], pool=pool, experts=experts, out=self.results)
        ops.scatter_add(self.results, self.x, weights=self.shares.reshape(-1))

    def expected(self, x, positions, cache_k, cache_v):
        """What `x` becomes in float64, by the experts that the device has chosen; the caches are written to."""
        s, w = self.sizes, {name: weights_of(t) for name, t in self.host.items()}
        normed = rms_norm(x, self.norms[0])
        q, k, v = ((normed @ w[name].T).reshape(s.n_tokens, -1, s.d) for name in "qkv")
        cache_k[:, positions] = rotated(k, positions).transpose(1, 0, 2)
        cache_v[:, positions] = v.transpose(1, 0, 2)
        n_kv = positions[-1] + 1
        attended = attention_float64(
            rotated(q, positions).transpose(1, 0, 2), cache_k[:, :n_kv], cache_v[:, :n_kv]
        )
        x = x + attended.transpose(1, 0, 2).reshape(s.n_tokens, -1) @ w["o"].T
        normed = rms_norm(x, self.norms[1])
        logits = normed @ w["router"].T
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for token, experts in enumerate(asnumpy(self.ids)):
            for e in experts:
                gate, up = (w[name][e] @ normed[token] for name in ("gate", "up"))
                x[token] += probabilities[token, e] * (
                    w["down"][e] @ (gate / (1 + np.exp(-gate)) * up)
                )
        return x


def small_tensor(rng, block_type, *shape):
    """Weights that keep rows about as long as they are."""
    t = random_tensor(rng, block_type, *shape)
    records = t.data.reshape(-1).view(t.format.block_dtype)
    for field in t.format.fields:
        if field.dtype == "<f2":
            records[field.name] *= 1.2 / np.sqrt(shape[-1])
    return t


def rms_norm(x, weight):
    return x / np.sqrt((x * x).mean(1, keepdims=True) + EPS) * weight


def rotated(x, positions):
    """(n_tokens, heads, d), adjacent pairs turned."""
    d = x.shape[2]
    angles = np.multiply.outer(positions, 10000.0 ** (-np.arange(0, d, 2) / d))[:, None]
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
