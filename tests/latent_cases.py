"""Random latent K and V (MLA), and what they decompress to in float64."""

from typing import Any, NamedTuple

import numpy as np

import quant


class LatentCase(NamedTuple):
    """`kv`: on the CPU; k, v: (n_head, n_kv, d) float64, of the decoded weights and the latents as given."""

    kv: Any
    k: Any
    v: Any


def random_weights(rng, name, shape):
    """A QuantTensor whose rows have a norm of about 1."""
    values = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
    if name == "F16":
        return quant.QuantTensor(values.astype("<f2").view(np.uint8), "F16", shape)
    return quant.quantize(values, name)


def latent_case(
    rng, name, n_head=4, n_kv=300, rank=64, d_nope=32, d_rope=16, d_v=32,
    k_transposed=False, dtype="f2",
):  # fmt: skip
    """A `LatentCase` with weights of format `name`."""
    c_kv = rng.standard_normal((n_kv, rank), dtype=np.float32).astype(dtype)
    k_pe = rng.standard_normal((n_kv, d_rope), dtype=np.float32).astype(dtype)
    wk_b = random_weights(
        rng, name, (n_head, *((rank, d_nope) if k_transposed else (d_nope, rank)))
    )
    wv_b = random_weights(rng, name, (n_head, d_v, rank))
    wk, wv = (quant.dequantize(t).astype(np.float64) for t in (wk_b, wv_b))
    if not k_transposed:
        wk = wk.transpose(0, 2, 1)
    latents = c_kv.astype(np.float64)
    tail = np.broadcast_to(k_pe.astype(np.float64), (n_head, n_kv, d_rope))
    k = np.concatenate([latents @ wk, tail], axis=2)
    v = latents @ wv.transpose(0, 2, 1)
    return LatentCase(quant.LatentKV(c_kv, k_pe, wk_b, wv_b, k_transposed), k, v)
