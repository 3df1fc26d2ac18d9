"""The float64 pass against llama.cpp and ik_llama.cpp: two readings of the formulas, on every architecture.

Distances are the root mean square of the difference over that of the logits. With F32 weights and cache llama.cpp is
as close as float32 is; what it rounds otherwise is said by the bounds: F16 weights, to which it rounds activations as
well, and blocks, for which it rounds them to 8 bits.
"""

import numpy as np
import pytest
from peers import IK, LLAMA_CPP, Setting, need, peer_logits
from small_files import CASES, clear_prompt, distance, small_file, small_geometry

from quant.models.synthetic.load_elsewhere import load_failures

N_TOKENS = 100  # beyond the original context (64), the window (40), and a u-batch
EXACT = Setting(type_k="F32", type_v="F32", n_ubatch=64)
# case -> why ik_llama.cpp (0.1.5) computes something else
IK_DIFFERS = {
    "llama": "it does not apply rope_freqs in llama models",
    "mixtral": "it leaves out the residual around the experts of llama models",
    "gemma3-period": "it does not read which layers of gemma3 have a window",
    "deepseek-v3-groups": "it does not choose among groups of experts",
}
# architecture -> distance with F32 weights, where it is not float32's
F32_BOUNDS = {"gemma2": 1e-3, "gemma3": 2e-3}  # llama.cpp's GELU is a table of F16
# type -> distance with its weights, and cases in which it is larger: what blocks add there is as large as the embedding
BOUNDS = {"F16": 2e-3, "Q8_0": 2e-2, "IQ4_NL": 2e-2, "Q2_K": 4e-2}
WIDER = {
    ("deepseek-fused-experts", "F16"): 4e-3,
    ("gemma3-27b", "F16"): 6e-3,
    ("gemma3", "Q8_0"): 3e-2,
}
# One case an architecture, in types that spread over all of the list.
QUANTISED = [
    ("llama", "Q2_K"),
    ("mixtral", "Q8_0"),
    ("qwen2", "IQ4_NL"),
    ("qwen3", "Q8_0"),
    ("qwen3moe", "IQ4_NL"),
    ("gemma2", "IQ4_NL"),
    ("gemma3", "Q8_0"),
    ("phi3", "Q8_0"),
    ("gpt-oss", "IQ4_NL"),
    ("glm4moe", "Q8_0"),
    ("deepseek-r1", "Q2_K"),
    ("moonlight", "Q8_0"),
]
# 27 layers of rounding, with a choice of experts in each: what is close after them is float32 alone.
DEEP = "deepseek-lite-27"


def is_comparable(engine, name):
    """Whether an engine loads a case and computes the same."""
    refused = any(failure.engine == engine for failure in load_failures(small_geometry(name)))
    return not refused and not (engine == IK and name in IK_DIFFERS)


def comparable(engine):
    """(case, type): every case an engine can be compared on in F16, and some in blocks."""
    rows = [*((name, "F16") for name in CASES if name != DEEP), *QUANTISED]
    return [(name, qtype) for name, qtype in rows if is_comparable(engine, name)]


def check(engine, path, prompt, setting, bound):
    need(engine)
    found = peer_logits(engine, path, prompt.tokens, setting)
    assert found.shape == prompt.logits.shape and np.isfinite(found).all()
    assert prompt.clear.mean() > 0.6
    assert distance(found, prompt) < bound


@pytest.mark.parametrize("name", [name for name in CASES if is_comparable(LLAMA_CPP, name)])
def test_llama_cpp_in_float32(model_folder, name):
    path = small_file(model_folder, name, "F32")
    prompt = clear_prompt(path, N_TOKENS, "F32", EXACT.n_ctx)
    assert 0.5 < prompt.logits.std() < 3
    bound = F32_BOUNDS.get(small_geometry(name).architecture, 1e-5)
    check(LLAMA_CPP, path, prompt, EXACT, bound)


@pytest.mark.parametrize(
    ("engine", "name", "qtype"),
    [(engine, *row) for engine in (LLAMA_CPP, IK) for row in comparable(engine)],
)
def test_rounded_weights(model_folder, engine, name, qtype):
    path = small_file(model_folder, name, qtype)
    prompt = clear_prompt(path, N_TOKENS, qtype)
    check(engine, path, prompt, Setting(), WIDER.get((name, qtype), BOUNDS[qtype]))


@pytest.mark.parametrize(
    ("name", "mla", "flash_attention"),
    [
        ("deepseek-r1", 1, False),
        ("deepseek-r1", 2, True),
        ("deepseek-r1", 3, True),
        ("deepseek-r1-fused", 1, True),
        ("deepseek-r1-fused", 3, True),
        ("deepseek-r1-both", 2, False),
        ("deepseek-r1-both", 3, True),
        (DEEP, 3, True),
    ],
)
def test_forms_of_latent_attention(model_folder, name, mla, flash_attention):
    """Mathematically one and the same; mla 0 is in `test_rounded_weights`."""
    path = small_file(model_folder, name, "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16")
    setting = Setting(mla=mla, flash_attention=flash_attention, n_ubatch=32)
    check(IK, path, prompt, setting, 5e-3 if name == DEEP else 2e-3)


@pytest.mark.parametrize("n_ctx", [256, 512])
def test_both_sets_of_rope_factors(model_folder, n_ctx):
    """Up to the original context (256 here) the short ones, in a longer one the others."""
    path = small_file(model_folder, "phi3", "F32")
    prompt = clear_prompt(path, N_TOKENS, "F32", n_ctx)
    check(LLAMA_CPP, path, prompt, EXACT._replace(n_ctx=n_ctx), 1e-5)
    other = clear_prompt(path, N_TOKENS, "F32", 768 - n_ctx)
    assert other.tokens == prompt.tokens and distance(other.logits, prompt) > 0.01


@pytest.mark.parametrize("name", IK_DIFFERS)
def test_what_ik_leaves_out_shows(model_folder, name):
    """The distances are no accident of loose bounds: one thing left out is far beyond them."""
    need(IK)
    path = small_file(model_folder, name, "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16")
    found = peer_logits(IK, path, prompt.tokens)
    assert distance(found, prompt) > 0.05
