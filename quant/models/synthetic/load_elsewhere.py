"""Which of the model files that `make_gguf` writes llama.cpp and ik_llama.cpp refuse to load, and why.

A rule is a row, tried on wheels: ik_llama_cpp_python 0.1.5 and llama-cpp-py-sync 0.11739 (llama.cpp b11739). Loading
is all that is said here, and dying at the first token: not that what runs then makes sense.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..architectures import architecture_of
from ..geometry import Llama3Scaling, LongRope, ModelGeometry

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


def _of_whole_width(geometry):
    return geometry.n_head * geometry.d_k == geometry.n_embd


_BOTH = (LLAMA_CPP, IK)
_LAYERS = _Rule(
    _BOTH, lambda g: g.n_layer > MAX_LAYERS, f"{{g.n_layer}} layers; {MAX_LAYERS} is the most there"
)
_EXPERTS = _Rule(
    _BOTH,
    lambda g: g.n_expert > MAX_EXPERTS,
    f"{{g.n_expert}} experts; {MAX_EXPERTS} is the most there",
)
_WHOLE_ROPE = _Rule(
    _BOTH,
    lambda g: g.n_rot != g.d_k,
    "RoPE must turn whole heads (d_k {g.d_k}) there, not {g.n_rot}",
)
_ONE_HEAD_SIZE = _Rule(
    _BOTH, lambda g: g.d_k != g.d_v, "d_k {g.d_k} and d_v {g.d_v} must be the same there"
)
_WIDTH = _Rule(
    _BOTH,
    lambda g: not _of_whole_width(g),
    "{g.n_head} heads of {g.d_k} must make up the width {g.n_embd} there",
)
_NEEDS_BIAS = _Rule((IK,), lambda g: not g.qkv_bias, "attn_q.bias is looked for")
_NEEDS_QK_NORM = _Rule(_BOTH, lambda g: not g.qk_norm, "attn_k_norm is looked for")
_NEEDS_OUTPUT = _Rule((IK,), lambda g: g.tied_output, "output.weight is looked for")
_PLAIN = (_LAYERS, _ONE_HEAD_SIZE)
_RULES = {
    "llama": (
        _LAYERS,
        _EXPERTS,
        _WHOLE_ROPE,
        _Rule(
            (IK,),
            lambda g: isinstance(g.rope_scaling, Llama3Scaling) and _head_size(g) != g.n_rot == g.d_k,
            "rope_freqs.weight is looked for with the head size n_embd / n_head = {head_size}; here it is {g.n_rot}",
        ),
    ),
    "qwen2": (*_PLAIN, _WHOLE_ROPE, _WIDTH, _NEEDS_BIAS),
    "qwen3": (*_PLAIN, _WHOLE_ROPE, _NEEDS_QK_NORM),
    "qwen3moe": (*_PLAIN, _EXPERTS, _WHOLE_ROPE, _NEEDS_QK_NORM),
    "gemma2": (
        *_PLAIN,
        _Rule((IK,), lambda g: True, "it stops at an assertion of its own when it builds the graph of a gemma2"),
        _Rule(_BOTH, lambda g: not g.tied_output, "output.weight is one tensor more than it expects"),
    ),
    "gemma3": (
        *_PLAIN,
        _NEEDS_QK_NORM,
        _Rule(
            (IK,),
            lambda g: g.n_layer < architecture_of("gemma3").window_period,
            "of {g.n_layer} layers none sees all keys there, and it dies at the first token",
        ),
    ),
    "phi3": (
        *_PLAIN,
        _WIDTH,
        _NEEDS_OUTPUT,
        _Rule((IK,), lambda g: not g.window, "attention.sliding_window is looked for"),
        _Rule(
            (IK,),
            lambda g: isinstance(g.rope_scaling, LongRope) and g.n_rot != _head_size(g),
            "rope_factors_long.weight is looked for with the head size {head_size}; here it is {g.n_rot}",
        ),
    ),
    "gpt-oss": (*_PLAIN, _EXPERTS, _WHOLE_ROPE, _NEEDS_BIAS),
    "glm4moe": (
        *_PLAIN,
        _EXPERTS,
        _NEEDS_BIAS,
        _Rule(_BOTH, lambda g: g.expert_gating != "sigmoid", "exp_probs_b.bias is looked for"),
        _Rule((LLAMA_CPP,), lambda g: g.fused_experts, "ffn_gate_exps is looked for"),
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
        _EXPERTS,
        _NEEDS_OUTPUT,
        _Rule((IK,), lambda g: g.n_predictor > 0, "the tensors of predictors are more than it expects"),
        _Rule(
            (IK,),
            lambda g: _has_experts(g) and g.expert_gating == "sqrt-softplus",
            "it stops at gating by sqrt-softplus when it builds the graph",
        ),
    ),
}  # fmt: skip
