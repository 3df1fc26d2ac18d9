"""The tensors of a model of given sizes, as tables: names, what they are, shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..geometry import Llama3Scaling, LongRope
from ..parts import PARTS

if TYPE_CHECKING:
    from quant.models.geometry import ModelGeometry


def tensor_list(geometry: ModelGeometry, only_attention: bool = False) -> list[TensorSpec]:
    """The tensors of a `ModelGeometry` in the order of a file: a list of `TensorSpec`.

    With `only_attention` just the attention's own tensors of every layer: such a file serves
    kqcap, but is no whole model.
    """
    rows = [("", row, 0) for row in _BEFORE]
    n_block = geometry.n_layer + geometry.n_predictor
    rows += [(f"blk.{il}.", row, il) for il in range(n_block) for row in _LAYER]
    rows += [("", row, 0) for row in _AFTER]
    names = {"ffn_norm": PARTS[geometry.architecture].ffn_norm}
    return [
        TensorSpec(prefix + row.name.format_map(names), row.kind, tuple(row.shape(geometry)))
        for prefix, row, il in rows
        if row.where(geometry, il) and (row.kind.is_attention or not only_attention)
    ]


@dataclass(frozen=True)
class Kind:
    """What a tensor is, as far as its weights and its type depend on it.

    `role` is looked up in make_gguf's table of type exceptions. `fill` is "normal" (standard
    deviation `std`, or 1/sqrt(columns) where that is None), "norm" (the same around 1), divisors of
    RoPE's frequencies ("rope_freqs", "rope_long", "rope_short"), or a part of the MLA decompression
    matrix ("kv_b", "k_b", "v_b", which agree with each other).
    """

    role: str
    fill: str = "normal"
    std: float | None = None
    is_attention: bool = False


class TensorSpec(NamedTuple):
    name: str
    kind: Kind
    shape: tuple


class _Row(NamedTuple):
    name: str
    kind: Kind
    shape: Callable  # geometry -> shape
    where: Callable = lambda geometry, il: True


def _parts(geometry):
    return PARTS[geometry.architecture]


def _has(*names):
    """Where the architecture or the model has all of these."""

    def where(geometry, il):
        parts = _parts(geometry)
        return all(getattr(parts, name, False) or getattr(geometry, name, False) for name in names)

    return where


def _lacks(*names):
    return lambda geometry, il: not any(_has(name)(geometry, il) for name in names)


def _both(*conditions):
    return lambda geometry, il: all(condition(geometry, il) for condition in conditions)


def _dense(geometry, il):
    return not geometry.n_expert or il < geometry.n_layer_dense


def _experts(geometry, il):
    return not _dense(geometry, il)


def _predictor(geometry, il):
    return il >= geometry.n_layer


def _form(*forms):
    return lambda geometry, il: geometry.kv_lora_rank > 0 and geometry.mla_form in forms


def _scaled_by(scaling):
    return lambda geometry, il: isinstance(geometry.rope_scaling, scaling)


def _d_ff_expert(geometry):
    return geometry.n_ff_expert or geometry.n_ff


def _q(geometry):
    return geometry.n_head * geometry.d_k


def _k(geometry):
    return geometry.n_head_kv * geometry.d_k


def _v(geometry):
    return geometry.n_head_kv * geometry.d_v


# Larger than what a block adds to it, as in trained models: rounding does not grow from layer to layer.
_EMBEDDING = Kind("token_embd", std=2.0)
_TIED_EMBEDDING = Kind("token_embd")
_OUTPUT = Kind("output")
_NORM = Kind("norm", fill="norm", std=0.2)
_ATTN_NORM = Kind("norm", fill="norm", std=0.2, is_attention=True)
_ATTN = Kind("attention", is_attention=True)
_ATTN_V = Kind("attn_v", is_attention=True)
_ATTN_BIAS = Kind("bias", std=0.3, is_attention=True)
_ATTN_OUTPUT = Kind("attn_output", is_attention=True)
_SINKS = Kind("bias", std=1.0, is_attention=True)
_FFN = Kind("ffn")
_FFN_DOWN = Kind("ffn_down")
_FFN_BIAS = Kind("bias", std=0.3)
_ROUTER = Kind("router")
_KV_B = Kind("attention", fill="kv_b", is_attention=True)
_K_B = Kind("attention", fill="k_b", is_attention=True)
_V_B = Kind("attention", fill="v_b", is_attention=True)
_ROUTER_BIAS = Kind("router", std=0.01)

_HEADS = _lacks("is_latent")
_LATENT = _has("is_latent")
_SPLIT_QKV = _lacks("is_latent", "has_fused_qkv")
_FUSED_QKV = _has("has_fused_qkv")
_QKV_BIAS = _has("qkv_bias")
_QK_NORM = _has("qk_norm")
_Q_LORA = _has("q_lora_rank")
_WHOLE_Q = _both(_LATENT, _lacks("q_lora_rank"))
_SPLIT_GATE = _both(_dense, _lacks("has_fused_gate_up"))
_FUSED_GATE = _both(_dense, _has("has_fused_gate_up"))
_SPLIT_EXPERTS = _both(_experts, _lacks("fused_experts"))
_FUSED_EXPERTS = _both(_experts, _has("fused_experts"))
_EXPERT_BIAS = _both(_experts, _has("has_biases"))
_SHARED_EXPERT = _both(_experts, _has("n_expert_shared"))

_BEFORE = (
    _Row("token_embd.weight", _EMBEDDING, lambda g: (g.n_vocab, g.n_embd), _lacks("tied_output")),
    _Row(
        "token_embd.weight", _TIED_EMBEDDING, lambda g: (g.n_vocab, g.n_embd), _has("tied_output")
    ),
    *(
        _Row(
            f"{name}.weight",
            Kind("rope_freqs", fill=fill),
            lambda g: (g.n_rot // 2,),
            _scaled_by(scaling),
        )
        for name, fill, scaling in (
            ("rope_freqs", "rope_freqs", Llama3Scaling),
            ("rope_factors_long", "rope_long", LongRope),
            ("rope_factors_short", "rope_short", LongRope),
        )
    ),
)
_AFTER = (
    _Row("output_norm.weight", _NORM, lambda g: (g.n_embd,)),
    _Row("output.weight", _OUTPUT, lambda g: (g.n_vocab, g.n_embd), _lacks("tied_output")),
)
_LAYER = (
    _Row("attn_norm.weight", _ATTN_NORM, lambda g: (g.n_embd,)),
    # heads of K and V
    _Row("attn_q.weight", _ATTN, lambda g: (_q(g), g.n_embd), _SPLIT_QKV),
    _Row("attn_q.bias", _ATTN_BIAS, lambda g: (_q(g),), _QKV_BIAS),
    _Row("attn_k.weight", _ATTN, lambda g: (_k(g), g.n_embd), _SPLIT_QKV),
    _Row("attn_k.bias", _ATTN_BIAS, lambda g: (_k(g),), _QKV_BIAS),
    _Row("attn_v.weight", _ATTN_V, lambda g: (_v(g), g.n_embd), _SPLIT_QKV),
    _Row("attn_v.bias", _ATTN_BIAS, lambda g: (_v(g),), _QKV_BIAS),
    _Row("attn_qkv.weight", _ATTN, lambda g: (_q(g) + _k(g) + _v(g), g.n_embd), _FUSED_QKV),
    _Row("attn_q_norm.weight", _ATTN_NORM, lambda g: (g.d_k,), _QK_NORM),
    _Row("attn_k_norm.weight", _ATTN_NORM, lambda g: (g.d_k,), _QK_NORM),
    _Row("attn_sinks.weight", _SINKS, lambda g: (g.n_head,), _has("has_sinks")),
    # the latent of MLA
    _Row("attn_q.weight", _ATTN, lambda g: (_q(g), g.n_embd), _WHOLE_Q),
    _Row("attn_q_a.weight", _ATTN, lambda g: (g.q_lora_rank, g.n_embd), _Q_LORA),
    _Row("attn_q_a_norm.weight", _ATTN_NORM, lambda g: (g.q_lora_rank,), _Q_LORA),
    _Row("attn_q_b.weight", _ATTN, lambda g: (_q(g), g.q_lora_rank), _Q_LORA),
    _Row("attn_kv_a_mqa.weight", _ATTN, lambda g: (g.kv_lora_rank + g.n_rot, g.n_embd), _LATENT),
    _Row("attn_kv_a_norm.weight", _ATTN_NORM, lambda g: (g.kv_lora_rank,), _LATENT),
    _Row(
        "attn_kv_b.weight",
        _KV_B,
        lambda g: (g.n_head * (g.d_nope + g.d_v), g.kv_lora_rank),
        _form("fused", "both"),
    ),
    _Row("attn_k_b.weight", _K_B, lambda g: (g.n_head, g.kv_lora_rank, g.d_nope), _form("split")),
    _Row("attn_v_b.weight", _V_B, lambda g: (g.n_head, g.d_v, g.kv_lora_rank), _form("split")),
    _Row("attn_k_b.weight", _K_B, lambda g: (g.n_head * g.kv_lora_rank, g.d_nope), _form("both")),
    _Row("attn_v_b.weight", _V_B, lambda g: (g.n_head * g.d_v, g.kv_lora_rank), _form("both")),
    _Row("attn_output.weight", _ATTN_OUTPUT, lambda g: (g.n_embd, g.n_head * g.d_v)),
    _Row("attn_output.bias", _ATTN_BIAS, lambda g: (g.n_embd,), _has("has_biases")),
    _Row("post_attention_norm.weight", _NORM, lambda g: (g.n_embd,), _has("has_post_norms")),
    _Row("{ffn_norm}.weight", _NORM, lambda g: (g.n_embd,)),
    # feed-forward
    _Row("ffn_gate.weight", _FFN, lambda g: (g.n_ff, g.n_embd), _SPLIT_GATE),
    _Row("ffn_down.weight", _FFN_DOWN, lambda g: (g.n_embd, g.n_ff), _dense),
    _Row("ffn_up.weight", _FFN, lambda g: (g.n_ff, g.n_embd), _SPLIT_GATE),
    _Row("ffn_up.weight", _FFN, lambda g: (2 * g.n_ff, g.n_embd), _FUSED_GATE),
    _Row("ffn_gate_inp.weight", _ROUTER, lambda g: (g.n_expert, g.n_embd), _experts),
    _Row("ffn_gate_inp.bias", _FFN_BIAS, lambda g: (g.n_expert,), _EXPERT_BIAS),
    _Row(
        "exp_probs_b.bias",
        _ROUTER_BIAS,
        lambda g: (g.n_expert,),
        lambda g, il: _experts(g, il) and _parts(g).has_router_bias and g.expert_gating == "sigmoid",
    ),
    _Row("ffn_gate_exps.weight", _FFN, lambda g: (g.n_expert, _d_ff_expert(g), g.n_embd), _SPLIT_EXPERTS),
    _Row("ffn_gate_exps.bias", _FFN_BIAS, lambda g: (g.n_expert, _d_ff_expert(g)), _EXPERT_BIAS),
    _Row("ffn_down_exps.weight", _FFN_DOWN, lambda g: (g.n_expert, g.n_embd, _d_ff_expert(g)), _experts),
    _Row("ffn_down_exps.bias", _FFN_BIAS, lambda g: (g.n_expert, g.n_embd), _EXPERT_BIAS),
    _Row("ffn_up_exps.weight", _FFN, lambda g: (g.n_expert, _d_ff_expert(g), g.n_embd), _SPLIT_EXPERTS),
    _Row("ffn_up_exps.bias", _FFN_BIAS, lambda g: (g.n_expert, _d_ff_expert(g)), _EXPERT_BIAS),
    _Row(
        "ffn_gate_up_exps.weight",
        _FFN,
        lambda g: (g.n_expert, 2 * _d_ff_expert(g), g.n_embd),
        _FUSED_EXPERTS,
    ),
    _Row(
        "ffn_gate_shexp.weight",
        _FFN,
        lambda g: (g.n_expert_shared * g.n_ff_expert, g.n_embd),
        _SHARED_EXPERT,
    ),
    _Row(
        "ffn_down_shexp.weight",
        _FFN_DOWN,
        lambda g: (g.n_embd, g.n_expert_shared * g.n_ff_expert),
        _SHARED_EXPERT,
    ),
    _Row(
        "ffn_up_shexp.weight",
        _FFN,
        lambda g: (g.n_expert_shared * g.n_ff_expert, g.n_embd),
        _SHARED_EXPERT,
    ),
    _Row("post_ffw_norm.weight", _NORM, lambda g: (g.n_embd,), _has("has_post_norms")),
    # what joins the next token to a predictor of the one after it
    _Row("nextn.eh_proj.weight", _FFN, lambda g: (g.n_embd, 2 * g.n_embd), _predictor),
    _Row("nextn.enorm.weight", _NORM, lambda g: (g.n_embd,), _predictor),
    _Row("nextn.hnorm.weight", _NORM, lambda g: (g.n_embd,), _predictor),
    _Row("nextn.shared_head_norm.weight", _NORM, lambda g: (g.n_embd,), _predictor),
)  # fmt: skip
