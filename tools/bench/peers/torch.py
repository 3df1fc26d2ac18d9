"""torch's scaled_dot_product_attention in float32, in each form that might be its fastest.

torch         V padded with zeros to K's size, which its fused CPU kernel asks for
torch math    not fused (V as it is)
torch gqa     fused, ``enable_gqa=True``
torch expanded  fused, a K/V head as a batch entry, its query heads reading it with stride 0

The causal mask (bottom right) is made outside the timing; a single token needs none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Variant, inputs


def describe() -> dict[str, Any]:
    import torch

    return dict(torch=torch.__version__, blas=torch.__config__.show().count("MKL") and "MKL")


def set_threads(n_threads: int) -> None:
    import torch

    torch.set_num_threads(n_threads)


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    if case["kind"] != "attention":
        return {}
    forms = _Forms(case["sizes"], data)
    return {form: getattr(forms, form.replace(" ", "_"))() for form in case["sizes"]["torch"]}


class _Forms:
    """The ways to call it; each method gives a variant. Shapes are torch's (batch, heads, ...)."""

    def __init__(self, sizes, data):
        import torch

        self.d_v = sizes["d_v"]
        self.q, self.k = (torch.from_numpy(data[name]) for name in "qk")
        self.v = torch.from_numpy(inputs.value_of(data, sizes))
        self.mask = _mask(sizes["n_tokens"], sizes["n_kv"])
        # with V in K, K itself does as a V whose further columns nobody looks at
        self.padded_v = self.k if sizes["v_in_k"] else _padded(self.v, sizes["d_k"])

    def torch(self):
        return self._fused(self.q[None], self.k[None], self.padded_v[None])

    def torch_gqa(self):
        return self._fused(self.q[None], self.k[None], self.padded_v[None], enable_gqa=True)

    def torch_expanded(self):
        return self._fused(*self._expanded(self.padded_v))

    def torch_math(self):
        return self._variant(*self._expanded(self.v), fused=False)

    def _fused(self, *operands, **options):
        return self._variant(*operands, fused=True, **options)

    def _expanded(self, v):
        n_head, n_tokens, d_k = self.q.shape
        n_head_kv = self.k.shape[0]
        group = n_head // n_head_kv
        q = self.q.reshape(n_head_kv, group, n_tokens, d_k)
        return (q, *(x[:, None].expand(-1, group, -1, -1) for x in (self.k, v)))

    def _variant(self, q, k, v, fused, **options):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH
        result = []

        def call(n_threads):
            with torch.inference_mode(), sdpa_kernel(backend):
                result[:] = [
                    torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, attn_mask=self.mask, **options
                    )
                ]

        def output():
            return result[0].reshape(*self.q.shape[:2], -1)[..., : self.d_v].numpy()

        return Variant(call, output)


def _mask(n_tokens, n_kv):
    import torch

    if n_tokens == 1:
        return None
    positions = np.arange(n_kv - n_tokens, n_kv)
    hidden = np.arange(n_kv)[None] > positions[:, None]
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0)))


def _padded(v, size):
    import torch

    return torch.nn.functional.pad(v, (0, size - v.shape[-1])).contiguous()
