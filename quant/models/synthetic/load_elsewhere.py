"""Which of the model files that `make_gguf` writes llama.cpp and ik_llama.cpp refuse to load, and why.

A rule is a row. Those of ik_llama.cpp were tried on its Python wheel (ik_llama_cpp_python 0.1.5), those of
llama.cpp are read from its source (autumn 2026). Loading is all that is said here: not that what runs then
makes sense.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..geometry import Llama3Scaling, ModelGeometry

__all__ = ["LoadFailure", "load_failures"]

LLAMA_CPP, IK = "llama.cpp", "ik_llama.cpp"
MAX_LAYERS = MAX_EXPERTS = 512  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS of both
LITE_LAYERS = (26, 27)  # what both take for a model without q_lora_rank


class LoadFailure(NamedTuple):
    """That `engine` does not load a file, for `reason`."""

    engine: str
    reason: str


def load_failures(geometry: ModelGeometry, only_attention: bool = False) -> list[LoadFailure]:
    """Who will not load the file that `make_gguf` writes of a geometry.

    Parameters
    ----------
    geometry : ModelGeometry
    only_attention : bool
        As for `make_gguf`.

    Returns
    -------
    list of LoadFailure
        Empty: both load it, as far as is known.
    """
    if only_attention:
        reason = "the file holds the attention's tensors alone; token_embd.weight is looked for"
        return [LoadFailure(engine, reason) for engine in (LLAMA_CPP, IK)]
    return [
        LoadFailure(engine, rule.reason.format(g=geometry, head_size=_head_size(geometry)))
        for rule in _RULES[geometry.architecture]
        if rule.breaks(geometry)
        for engine in rule.engines
    ]


class _Rule(NamedTuple):
    engines: tuple
    breaks: Callable  # ModelGeometry -> bool
    reason: str  # with {g.name of a size} and {head_size}


def _head_size(geometry):
    """What the width leaves to a head; ik_llama.cpp expects RoPE's frequencies of this size."""
    return geometry.n_embd // geometry.n_head


def _has_experts(geometry):
    return geometry.n_expert > 0 and geometry.n_layer_dense < geometry.n_layer


_BOTH = (LLAMA_CPP, IK)
_LAYERS = _Rule(
    _BOTH, lambda g: g.n_layer > MAX_LAYERS, f"{{g.n_layer}} layers; {MAX_LAYERS} is the most there"
)
_RULES = {
    "llama": (
        _LAYERS,
        _Rule(_BOTH, lambda g: g.n_rot != g.d_k, "RoPE must turn whole heads (d_k {g.d_k}) there, not {g.n_rot}"),
        _Rule(
            (IK,),
            lambda g: isinstance(g.rope_scaling, Llama3Scaling) and _head_size(g) != g.n_rot == g.d_k,
            "rope_freqs.weight is looked for with the head size n_embd / n_head = {head_size}; here it is {g.n_rot}",
        ),
    ),
    "deepseek2": (
        _LAYERS,
        _Rule(
            (IK,),
            lambda g: not g.q_lora_rank and g.n_layer not in LITE_LAYERS,
            "only a model of 27 or 26 layers may have attn_q (q_lora 0) there; with {g.n_layer} it looks for attn_q_a",
        ),
        _Rule(
            _BOTH,
            lambda g: g.q_lora_rank and g.n_layer in LITE_LAYERS,
            "a model of 27 or 26 layers is taken for one without q_lora there, and attn_q is looked for",
        ),
        _Rule(
            (LLAMA_CPP,),
            lambda g: g.q_lora_rank and (g.n_layer, g.n_vocab) == (48, 128256),
            "48 layers and 128256 tokens are taken for a model without q_lora there, and attn_q is looked for",
        ),
        _Rule(
            (IK,),
            lambda g: (
                g.n_head % 4 or g.kv_lora_rank != 512 or g.n_rot != 64
                if g.mla_form == "split"
                else g.n_head == 1
            ),
            "with the latent as one K/V head it wants kv_lora 512, rope 64 and heads in fours, "
            "not {g.kv_lora_rank}, {g.n_rot} and {g.n_head}",
        ),
        _Rule(
            (LLAMA_CPP,),
            lambda g: g.mla_form == "both",
            "attn_k_b and attn_v_b beside attn_kv_b are more tensors than it expects",
        ),
        _Rule(
            _BOTH,
            lambda g: _has_experts(g) and not g.n_expert_shared,
            "layers with experts must have a shared one there; ffn_gate_shexp is looked for",
        ),
        _Rule(
            _BOTH,
            lambda g: g.n_expert > MAX_EXPERTS,
            f"{{g.n_expert}} experts; {MAX_EXPERTS} is the most there",
        ),
    ),
}  # fmt: skip
