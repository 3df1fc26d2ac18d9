"""torch's ways to do attention on a GPU, on our arrays: what ``kqcap bench --device`` compares with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from quant import QuantTensor


def attention(q: Any, k: Any, v: Any) -> dict[str, Callable[[], Any]]:
    """{name: call} on CuPy arrays; each call takes memory as it likes.

    "head split" is the algorithm of ik_llama.cpp's -amb on float32 scores, one head at a time, with a
    whole mask. The others are scaled_dot_product_attention's, causal by torch's lower-right bias.
    """
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    q, k, v = (torch.from_dlpack(x) for x in (q, k, v))
    n_tokens, n_kv = q.shape[1], k.shape[1]
    group = q.shape[0] // k.shape[0]
    scale = 1 / math.sqrt(q.shape[2])

    def head_split():
        position = torch.arange(n_kv - n_tokens, n_kv, device=q.device)[:, None]
        mask = torch.zeros((n_tokens, n_kv), device=q.device)
        mask.masked_fill_(torch.arange(n_kv, device=q.device)[None] > position, -math.inf)
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=q.dtype, device=q.device)
        for head in range(q.shape[0]):
            kq = torch.mm(q[head], k[head // group].T, out_dtype=torch.float32)
            kq.mul_(scale).add_(mask)
            torch.softmax(kq, -1, out=kq)
            torch.mm(kq.to(q.dtype), v[head // group], out=out[head])
        return out

    def by(backend):
        bias = causal_lower_right(n_tokens, n_kv)
        values = F.pad(v, (0, q.shape[2] - v.shape[2])) if backend == "FLASH_ATTENTION" else v

        def run():
            with sdpa_kernel(getattr(SDPBackend, backend)):
                F.scaled_dot_product_attention(
                    q[None], k[None], values[None], attn_mask=bias, enable_gqa=group > 1
                )

        return run

    return {
        "head split": head_split,
        "flash": by("FLASH_ATTENTION"),
        "cudnn": by("CUDNN_ATTENTION"),
        "math": by("MATH"),
    }


def product_flops(n: int = 8192, rounds: int = 10) -> float:
    """Operations a second of torch's largest 16-bit product: what tensor cores give."""
    import statistics

    import torch

    from .timing import interleaved

    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = interleaved({"product": lambda: torch.mm(a, b)}, rounds, "cuda:0")
    return 2 * n**3 / statistics.median(times["product"])


def dequantize(t: QuantTensor, out: Any) -> Any:
    """A call that does the gguf package's formula in torch on a CuPy tensor, or None for other types."""
    import torch

    formula = {"Q8_0": _q8_0, "Q4_0": _q4_0}.get(t.format.name)
    if formula is None:
        return None
    data, out = (torch.from_dlpack(x) for x in (t.data, out))
    blocks = data.reshape(-1, t.format.block_bytes)

    def run():
        out.view(-1, 32).copy_(formula(torch, blocks))

    return run


def _q8_0(torch, blocks):
    return blocks[:, 2:].view(torch.int8).float() * blocks[:, :2].view(torch.float16).float()


def _q4_0(torch, blocks):
    low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
    signed = torch.cat([low, high], 1).to(torch.int8) - 8
    return signed.float() * blocks[:, :2].view(torch.float16).float()


def give_back_memory() -> None:
    """What torch keeps of it."""
    import torch

    torch.cuda.empty_cache()
