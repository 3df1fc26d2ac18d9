"""Small model files of every architecture, made by make_gguf once a session: geometries as rows."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np
from float64_pass import File, float64_pass

from quant.models.geometry import Llama3Scaling, LongRope, ModelGeometry, Yarn
from quant.models.named_geometries import named_geometry
from quant.models.synthetic.make_gguf import make_gguf

# Widths are multiples of 256, so that every format fits. Contexts are extended from 64 tokens, and windows are of 40:
# prompts of a hundred tokens pass both.
ORIGINAL, WINDOW = 64, 40
_PLAIN = dict(
    n_layer=2,
    n_embd=256,
    n_head=4,
    n_head_kv=2,
    d_k=64,
    d_v=64,
    n_rot=64,
    n_ff=512,
    n_vocab=320,
    context_length=4096,
)
_EXPERTS = dict(n_expert=6, n_expert_used=2)
_LATENT = dict(
    n_layer=3, n_embd=256, n_head=4, n_head_kv=4, d_k=128, d_v=64, n_rot=64, kv_lora_rank=512, n_ff=512, n_vocab=320,
    context_length=4096, n_expert=6, n_expert_used=2, n_ff_expert=256, n_layer_dense=1,
)  # fmt: skip
_R1 = dict(**_LATENT, q_lora_rank=256, rope_scaling=Yarn(40.0, ORIGINAL, 0.1))
_LITE = dict(**_LATENT, rope_scaling=Yarn(40.0, ORIGINAL, 0.0707))
# What ik_llama.cpp takes for V2-Lite: 27 layers.
_LITE_27 = {**_LITE, "n_layer": 27, "d_k": 96, "d_v": 32, "n_ff": 256, "n_expert": 4, "n_expert_used": 2, "n_ff_expert": 32}  # fmt: skip


class Case(NamedTuple):
    """A model: the named one that it is like, and what is different."""

    base: str
    changes: dict[str, Any]


CASES = {
    "llama": Case("llama-8b", dict(**_PLAIN, rope_scaling=Llama3Scaling(original_context_length=ORIGINAL))),
    "llama-yarn-tied": Case("llama-8b", dict(**_PLAIN, rope_scaling=Yarn(4.0, ORIGINAL), tied_output=True)),
    "mixtral": Case("mixtral-8x7b", {**_PLAIN, **_EXPERTS, "n_ff": 256}),
    "qwen2": Case("qwen2-7b", _PLAIN),
    "qwen3": Case("qwen3-8b", _PLAIN),
    "qwen3moe": Case("qwen3-30b-a3b", {**_PLAIN, **_EXPERTS, "n_ff_expert": 256}),
    "gemma2": Case("gemma-2-9b", {**_PLAIN, "n_layer": 3, "window": WINDOW, "attn_softcap": 5.0, "final_softcap": 3.0}),
    "gemma3": Case("gemma-3-4b", {**_PLAIN, "n_layer": 7, "window": WINDOW, "n_ff": 256}),
    # A period that the file says, a cap, an output of its own; and what 62 layers are known by, 27B.
    "gemma3-period": Case(
        "gemma-3-4b",
        {**_PLAIN, "n_layer": 6, "window": WINDOW, "window_period": 3, "n_ff": 256, "final_softcap": 3.0, "tied_output": False},
    ),
    "gemma3-27b": Case(
        "gemma-3-4b",
        {**_PLAIN, "n_layer": 62, "n_embd": 64, "d_k": 32, "d_v": 32, "n_rot": 32, "n_ff": 64, "window": WINDOW},
    ),
    "phi3": Case("phi-3-mini", {**_PLAIN, "n_head_kv": 4, "rope_scaling": LongRope(8.0, 256)}),
    "gpt-oss": Case(
        "gpt-oss-20b",
        {**_PLAIN, **_EXPERTS, "n_layer": 3, "n_ff_expert": 256, "window": WINDOW, "rope_scaling": Yarn(32.0, ORIGINAL)},
    ),
    "glm4moe": Case(
        "glm-4.5-air",
        {**_PLAIN, **_EXPERTS, "n_layer": 3, "n_ff_expert": 256, "n_rot": 32, "expert_weights_scale": 1.5},
    ),
    "glm4moe-qk-norm": Case(
        "glm-4.5-air",
        {**_PLAIN, **_EXPERTS, "n_ff_expert": 256, "n_rot": 32, "qk_norm": True, "n_predictor": 0},
    ),
    "deepseek-lite": Case("deepseek-v2-lite", _LITE),
    "deepseek-lite-fused": Case("deepseek-v2-lite", dict(**_LITE, mla_form="fused")),
    "deepseek-lite-27": Case("deepseek-v2-lite", dict(**_LITE_27, mla_form="fused")),
    "deepseek-r1": Case("deepseek-r1", _R1),
    "deepseek-r1-fused": Case("deepseek-r1", dict(**_R1, mla_form="fused")),
    "deepseek-r1-both": Case("deepseek-r1", dict(**_R1, mla_form="both")),
    "deepseek-v3-groups": Case(
        "deepseek-v3", dict(**{**_R1, "n_expert": 8}, n_expert_group=4, n_expert_group_used=2)
    ),
    "deepseek-fused-experts": Case("deepseek-r1", dict(**_R1, fused_experts=True, tied_output=True)),
    "deepseek-softplus": Case(
        "deepseek-r1", {**_R1, "n_layer": 2, "expert_gating": "sqrt-softplus", "n_predictor": 1}
    ),
    "deepseek-selected": Case("deepseek-r1", {**_R1, "n_layer": 2, "expert_gating": "softmax-selected"}),
    "kimi-k2": Case("kimi-k2", {**_R1, "rope_scaling": Yarn(32.0, ORIGINAL, 0.1), "n_layer": 2}),
    "moonlight": Case("moonlight-16b", {**_LATENT, "n_layer": 2}),
    "glm-4.7-flash": Case("glm-4.7-flash", {**_LATENT, "n_layer": 2, "q_lora_rank": 256, "d_k": 192, "d_v": 128}),
}  # fmt: skip


def small_geometry(name: str) -> ModelGeometry:
    """The `ModelGeometry` of a row of CASES."""
    base, changes = CASES[name]
    geometry = dataclasses.replace(named_geometry(base), name=f"small {name}", **changes)
    geometry.check()
    return geometry


def small_file(folder: pathlib.Path, name: str, qtype: str) -> pathlib.Path:
    """The path of a row's file with a bulk of a type, written below `folder` where it is not yet there."""
    path = folder / f"{name}-{qtype}.gguf"
    if not path.exists():
        make_gguf(path, small_geometry(name), qtype)
    return path


class Prompt(NamedTuple):
    """A prompt whose routing is clear, and what it should lead to.

    Attributes
    ----------
    tokens : list of int
    logits : numpy.ndarray
        float64 (n_tokens, n_vocab), of float64_pass.
    clear : numpy.ndarray
        bool (n_tokens,): no router's choice is closer than was asked for.
    """

    tokens: list[int]
    logits: np.ndarray
    clear: np.ndarray


# By how much a router's logits may be wrong before a prompt's experts become others: what engines differ by. Some
# tokens of a long prompt are always closer than that; they are replaced until few are.
CLEAR = {"F32": 2e-5, "F16": 2e-3}
CLEAR_QUANTISED = 0.03
MOST_ROUNDS = 4


@functools.cache
def clear_prompt(path: pathlib.Path, n_tokens: int, qtype: str, n_ctx: int = 512) -> Prompt:
    """Seeded random tokens, without those whose choice of experts is a matter of rounding.

    One token that takes another expert than it should changes all tokens after it by more than any bound on
    rounding allows, and says nothing about the formulas.
    """
    file = File(path)
    rng = np.random.default_rng(0)
    n_vocab = len(file.metadata["tokenizer.ggml.tokens"])
    tokens = rng.integers(3, n_vocab, n_tokens)
    least = CLEAR.get(qtype, CLEAR_QUANTISED)
    for _ in range(MOST_ROUNDS):
        expected = float64_pass(file, tokens, n_ctx)
        clear = expected.routing_margin > least
        if clear.all():
            break
        tested = tokens
        tokens = np.where(clear, tokens, rng.integers(3, n_vocab, n_tokens))
    else:
        tokens = tested
    return Prompt(tokens.tolist(), expected.logits, clear)


def distance(found: np.ndarray, prompt: Prompt) -> float:
    """Root mean square of what logits are off by, over that of the logits, where routing is clear."""
    off = (found - prompt.logits)[prompt.clear]
    return float(np.sqrt(np.mean(off**2) / np.mean(prompt.logits[prompt.clear] ** 2)))
