"""What model files of an architecture hold: a row of traits for each that `make_gguf` writes.

A row says what all files of it have. What differs between its models, and all sizes, is in `ModelGeometry`. Tensors
follow in synthetic/tensor_list.py, keys in synthetic/metadata.py: neither asks for an architecture's name.
"""

from __future__ import annotations

from typing import NamedTuple

_LATENT = ("q_lora_rank", "kv_lora_rank")
_EXPERTS = ("n_expert", "n_expert_used", "n_ff_expert", "fused_experts")
_LEADING = ("n_expert_shared", "n_layer_dense", "n_expert_group", "n_expert_group_used")
_PREDICTOR = ("n_predictor",)
_WINDOW = ("window", "window_period")
_SOFTCAP = ("attn_softcap", "final_softcap")
_BIAS, _QK_NORM = ("qkv_bias",), ("qk_norm",)
_DENSE = (*_LATENT, *_EXPERTS, *_LEADING, *_PREDICTOR)
_PLAIN = (*_DENSE, *_WINDOW, *_SOFTCAP)


class Parts(NamedTuple):
    """One architecture's traits, as far as its files go.

    Attributes
    ----------
    none_of : tuple of str
        Attributes of `ModelGeometry` that its models do not have: 0 or False there.
    is_latent : bool
        Attention with the latent of MLA, not with heads of K and V.
    has_experts, may_lack_experts : bool
        Whether layers have experts; whether models without any belong to it as well, whose experts are then as wide
        as `n_ff`.
    says_routing : bool
        The file has keys for gating, scale and norm of the experts' weights, for leading dense layers and shared experts.
    has_router_bias : bool
        Experts are selected by probabilities with a bias (where gating is by sigmoid).
    has_window : bool
        Some layers have a window.
    has_fused_qkv, has_fused_gate_up : bool
        One tensor for q, k and v; `ffn_up` holds gate and up.
    has_biases : bool
        Output of the attention, router and experts have biases.
    has_sinks : bool
    has_post_norms : bool
        What attention and feed-forward block give is normalised before it is added.
    ffn_norm : str
        What the norm before the feed-forward block is called.
    """

    none_of: tuple[str, ...]
    is_latent: bool = False
    has_experts: bool = False
    may_lack_experts: bool = False
    says_routing: bool = False
    has_router_bias: bool = False
    has_window: bool = False
    has_fused_qkv: bool = False
    has_fused_gate_up: bool = False
    has_biases: bool = False
    has_sinks: bool = False
    has_post_norms: bool = False
    ffn_norm: str = "ffn_norm"


PARTS = {
    "llama": Parts(
        (*_LATENT, "n_ff_expert", "fused_experts", *_LEADING, *_PREDICTOR, *_WINDOW, *_SOFTCAP, *_BIAS, *_QK_NORM),
        has_experts=True,
        may_lack_experts=True,
    ),
    "qwen2": Parts((*_PLAIN, *_QK_NORM)),
    "qwen3": Parts((*_PLAIN, *_BIAS)),
    "qwen3moe": Parts(
        (*_LATENT, "fused_experts", *_LEADING, *_PREDICTOR, *_WINDOW, *_SOFTCAP, *_BIAS), has_experts=True
    ),
    "gemma2": Parts((*_DENSE, *_BIAS, *_QK_NORM), has_window=True, has_post_norms=True),
    "gemma3": Parts((*_DENSE, "attn_softcap", *_BIAS), has_window=True, has_post_norms=True),
    # a window is named in its files, and applied by nobody
    "phi3": Parts((*_DENSE, "window_period", *_SOFTCAP, *_BIAS, *_QK_NORM), has_fused_qkv=True, has_fused_gate_up=True),
    "gpt-oss": Parts(
        (*_LATENT, "fused_experts", *_LEADING, *_PREDICTOR, *_SOFTCAP, *_QK_NORM, "tied_output"),
        has_experts=True,
        has_window=True,
        has_biases=True,
        has_sinks=True,
        ffn_norm="post_attention_norm",
    ),
    "glm4moe": Parts(
        (*_LATENT, *_WINDOW, *_SOFTCAP),
        has_experts=True,
        says_routing=True,
        has_router_bias=True,
        ffn_norm="post_attention_norm",
    ),
    "deepseek2": Parts(
        (*_WINDOW, *_SOFTCAP, *_BIAS, *_QK_NORM),
        is_latent=True,
        has_experts=True,
        says_routing=True,
        has_router_bias=True,
    ),
}  # fmt: skip
