"""The tensors of a model of given sizes, as tables: names, what they are, shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..geometry import Llama3Scaling

if TYPE_CHECKING:
    from quant.models.geometry import ModelGeometry


def tensor_list(geometry: ModelGeometry, only_attention: bool = False) -> list[TensorSpec]:
    """The tensors of a `ModelGeometry` in the order of a file: a list of `TensorSpec`.

    With `only_attention` just the attention's own tensors of every layer: such a file serves
    kqcap, but is no whole model.
    """
    before, layer, after = _TENSORS[geometry.architecture]
    rows = [("", row, 0) for row in before]
    rows += [(f"blk.{il}.", row, il) for il in range(geometry.n_layer) for row in layer]
    rows += [("", row, 0) for row in after]
    return [
        TensorSpec(prefix + row.name, row.kind, tuple(row.shape(geometry)))
        for prefix, row, il in rows
        if row.where(geometry, il) and (row.kind.is_attention or not only_attention)
    ]


@dataclass(frozen=True)
class Kind:
    """What a tensor is, as far as its weights and its type depend on it.

    `role` is looked up in make_gguf's table of type exceptions. `fill` is "normal" (standard
    deviation `std`, or 1/sqrt(columns) where that is None), "ones", "rope_freqs", or a part of
    the MLA decompression matrix ("kv_b", "k_b", "v_b", which agree with each other).
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


def _dense(geometry, il):
    return not geometry.n_expert or il < geometry.n_layer_dense


def _experts(geometry, il):
    return not _dense(geometry, il)


def _shared_expert(geometry, il):
    return _experts(geometry, il) and geometry.n_expert_shared > 0


def _q_lora(geometry, il):
    return geometry.q_lora_rank > 0


def _form(*forms):
    return lambda geometry, il: geometry.mla_form in forms


_EMBEDDING = Kind("token_embd", std=0.02)
_OUTPUT = Kind("output")
_NORM = Kind("norm", fill="ones")
_ATTN_NORM = Kind("norm", fill="ones", is_attention=True)
_ATTN = Kind("attention", is_attention=True)
_ATTN_V = Kind("attn_v", is_attention=True)
_ATTN_OUTPUT = Kind("attn_output", is_attention=True)
_FFN = Kind("ffn")
_FFN_DOWN = Kind("ffn_down")

_BEFORE = (
    _Row("token_embd.weight", _EMBEDDING, lambda g: (g.n_vocab, g.n_embd)),
    _Row(
        "rope_freqs.weight",
        Kind("rope_freqs", fill="rope_freqs"),
        lambda g: (g.n_rot // 2,),
        lambda g, il: isinstance(g.rope_scaling, Llama3Scaling),
    ),
)
_AFTER = (
    _Row("output_norm.weight", _NORM, lambda g: (g.n_embd,)),
    _Row("output.weight", _OUTPUT, lambda g: (g.n_vocab, g.n_embd)),
)
_DENSE_FFN = (
    _Row("ffn_gate.weight", _FFN, lambda g: (g.n_ff, g.n_embd), _dense),
    _Row("ffn_down.weight", _FFN_DOWN, lambda g: (g.n_embd, g.n_ff), _dense),
    _Row("ffn_up.weight", _FFN, lambda g: (g.n_ff, g.n_embd), _dense),
)
_LLAMA_LAYER = (
    _Row("attn_norm.weight", _ATTN_NORM, lambda g: (g.n_embd,)),
    _Row("attn_q.weight", _ATTN, lambda g: (g.n_head * g.d_k, g.n_embd)),
    _Row("attn_k.weight", _ATTN, lambda g: (g.n_head_kv * g.d_k, g.n_embd)),
    _Row("attn_v.weight", _ATTN_V, lambda g: (g.n_head_kv * g.d_v, g.n_embd)),
    _Row("attn_output.weight", _ATTN_OUTPUT, lambda g: (g.n_embd, g.n_head * g.d_v)),
    _Row("ffn_norm.weight", _NORM, lambda g: (g.n_embd,)),
    *_DENSE_FFN,
)
_KV_B = Kind("attention", fill="kv_b", is_attention=True)
_K_B = Kind("attention", fill="k_b", is_attention=True)
_V_B = Kind("attention", fill="v_b", is_attention=True)
_ROUTER_BIAS = Kind("router", std=0.01)
_DEEPSEEK2_LAYER = (
    _Row("attn_norm.weight", _ATTN_NORM, lambda g: (g.n_embd,)),
    _Row(
        "attn_q.weight",
        _ATTN,
        lambda g: (g.n_head * g.d_k, g.n_embd),
        lambda g, il: not _q_lora(g, il),
    ),
    _Row("attn_q_a.weight", _ATTN, lambda g: (g.q_lora_rank, g.n_embd), _q_lora),
    _Row("attn_q_a_norm.weight", _ATTN_NORM, lambda g: (g.q_lora_rank,), _q_lora),
    _Row("attn_q_b.weight", _ATTN, lambda g: (g.n_head * g.d_k, g.q_lora_rank), _q_lora),
    _Row("attn_kv_a_mqa.weight", _ATTN, lambda g: (g.kv_lora_rank + g.n_rot, g.n_embd)),
    _Row("attn_kv_a_norm.weight", _ATTN_NORM, lambda g: (g.kv_lora_rank,)),
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
    _Row("ffn_norm.weight", _NORM, lambda g: (g.n_embd,)),
    *_DENSE_FFN,
    _Row("ffn_gate_inp.weight", Kind("router"), lambda g: (g.n_expert, g.n_embd), _experts),
    _Row(
        "exp_probs_b.bias",
        _ROUTER_BIAS,
        lambda g: (g.n_expert,),
        lambda g, il: _experts(g, il) and g.expert_gating == "sigmoid",
    ),
    _Row("ffn_gate_exps.weight", _FFN, lambda g: (g.n_expert, g.n_ff_expert, g.n_embd), _experts),
    _Row(
        "ffn_down_exps.weight", _FFN_DOWN, lambda g: (g.n_expert, g.n_embd, g.n_ff_expert), _experts
    ),
    _Row("ffn_up_exps.weight", _FFN, lambda g: (g.n_expert, g.n_ff_expert, g.n_embd), _experts),
    _Row(
        "ffn_gate_shexp.weight",
        _FFN,
        lambda g: (g.n_expert_shared * g.n_ff_expert, g.n_embd),
        _shared_expert,
    ),
    _Row(
        "ffn_down_shexp.weight",
        _FFN_DOWN,
        lambda g: (g.n_embd, g.n_expert_shared * g.n_ff_expert),
        _shared_expert,
    ),
    _Row(
        "ffn_up_shexp.weight",
        _FFN,
        lambda g: (g.n_expert_shared * g.n_ff_expert, g.n_embd),
        _shared_expert,
    ),
)
# architecture -> tensors before, in each layer, and after the layers
_TENSORS = {
    "llama": (_BEFORE, _LLAMA_LAYER, _AFTER),
    "deepseek2": (_BEFORE, _DEEPSEEK2_LAYER, _AFTER),
}
