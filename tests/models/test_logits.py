"""Logits of whole models: against the float64 pass, llama.cpp and ik_llama.cpp, on small files of every architecture."""

import itertools

import numpy as np
import pytest
from peers import IK, LLAMA_CPP, Setting, need, peer_logits
from small_files import CASES, clear_prompt, distance, small_file
from test_peers_agree import BOUNDS, N_TOKENS, WIDER, comparable

import quant

N_UBATCH = 32
EDGES = (31, 32, 33, 97)  # prompts that end beside and beyond the edges of u-batches
EXACT_BOUND = 1e-5
# cache -> distance with exact products: what rounding keys and values costs in two layers of heads ...
KV_BOUNDS = {"f16": 1e-4, "bf16": 8e-4, "q8_0": 2.5e-3, "q4_0": 0.04, "iq4_nl": 0.035}
# The others that heads' caches may be of, which kernels treat alike.
MORE_KV_BOUNDS = {"q4_1": 0.04, "q5_0": 0.02, "q5_1": 0.02}
# ... and how much more elsewhere: more layers, larger ones, experts. llama.cpp's own distances are in the same proportion.
KV_FACTORS = {"llama": 1, "gemma3": 7, "gpt-oss": 5, "deepseek-r1": 6}


def relative(found, expected):
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def load(path, **options):
    return quant.load(path, **{"n_ctx": 512, "n_ubatch": N_UBATCH, "n_threads": 2, **options})


def prefill(path, tokens, **options):
    with load(path, **options) as net:
        return net.prefill(tokens, all_logits=True)


@pytest.mark.parametrize("name", CASES)
def test_exact_products_are_float64s(model_folder, name):
    """Whole prompts of all lengths around u-batches, then tokens one by one."""
    path = small_file(model_folder, name, "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16")
    with load(path, exact=True, kv_type="f32") as net:
        for n_tokens in EDGES:
            net.truncate(0)
            found = net.prefill(prompt.tokens[:n_tokens], all_logits=True)
            assert found.shape == (n_tokens, prompt.logits.shape[1])
            assert relative(found, prompt.logits[:n_tokens]) < EXACT_BOUND
        for position in range(EDGES[-1], N_TOKENS):
            found = net.decode(prompt.tokens[position])
            assert relative(found, prompt.logits[position]) < EXACT_BOUND


@pytest.mark.parametrize("qtype", ["Q8_0", "IQ4_NL", "Q2_K"])
@pytest.mark.parametrize("name", ["llama", "deepseek-r1", "deepseek-r1-fused", "gpt-oss"])
def test_exact_products_of_blocks_are_float64s(model_folder, name, qtype):
    path = small_file(model_folder, name, qtype)
    prompt = clear_prompt(path, N_TOKENS, qtype)
    found = prefill(path, prompt.tokens, exact=True, kv_type="f32")
    assert distance(found, prompt) < EXACT_BOUND


@pytest.mark.parametrize(("name", "qtype"), comparable(LLAMA_CPP))
def test_as_llama_cpp_computes_them(model_folder, name, qtype):
    need(LLAMA_CPP)
    path = small_file(model_folder, name, qtype)
    prompt = clear_prompt(path, N_TOKENS, qtype)
    theirs = peer_logits(LLAMA_CPP, path, prompt.tokens)
    found = prefill(path, prompt.tokens)
    bound = WIDER.get((name, qtype), BOUNDS[qtype])
    assert distance(found, prompt) < bound
    assert relative(found[prompt.clear], theirs[prompt.clear]) < bound


@pytest.mark.parametrize("mla", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-r1-fused", "deepseek-r1-both"])
def test_forms_of_latent_attention(model_folder, name, mla):
    """Decompressed and absorbed, as ik_llama.cpp's -mla of the same number, and exact as float64."""
    path = small_file(model_folder, name, "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16")
    exact = prefill(path, prompt.tokens, mla=mla, exact=True, kv_type="f32")
    assert distance(exact, prompt) < EXACT_BOUND
    need(IK)
    theirs = peer_logits(IK, path, prompt.tokens, Setting(mla=mla))
    found = prefill(path, prompt.tokens, mla=mla)
    assert relative(found, theirs) < BOUNDS["F16"]


@pytest.mark.parametrize(
    ("name", "kv_type"),
    [*itertools.product(KV_FACTORS, KV_BOUNDS), *(("llama", kind) for kind in MORE_KV_BOUNDS)],
)
def test_types_of_the_cache(model_folder, name, kv_type):
    path = small_file(model_folder, name, "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16")
    found = prefill(path, prompt.tokens, exact=True, kv_type=kv_type)
    bound = {**KV_BOUNDS, **MORE_KV_BOUNDS}[kv_type]
    assert distance(found, prompt) < bound * KV_FACTORS[name]


@pytest.mark.parametrize("n_ctx", [256, 512])
def test_both_sets_of_rope_factors(model_folder, n_ctx):
    path = small_file(model_folder, "phi3", "F16")
    prompt = clear_prompt(path, N_TOKENS, "F16", n_ctx)
    found = prefill(path, prompt.tokens, n_ctx=n_ctx, exact=True, kv_type="f32")
    assert distance(found, prompt) < EXACT_BOUND
