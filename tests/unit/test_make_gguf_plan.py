"""What make_gguf plans: the tensors of named models, their types and sizes, the vocabulary, what is refused."""

import collections
import dataclasses
import math
import pathlib

import gguf
import numpy as np
import pytest
from small_models import small

import quant
from quant.models.geometry import MLA_FORMS, MOST, Llama3Scaling
from quant.models.named_geometries import GEOMETRIES, named_geometry
from quant.models.synthetic.make_gguf import make_gguf, plan_tensors
from quant.models.synthetic.metadata import MAX_VOCAB, MIN_VOCAB, tokenizer
from quant.models.synthetic.tensor_list import tensor_list

ROOT = pathlib.Path(__file__).resolve().parents[2]


def count_types(tensors):
    return dict(collections.Counter(tensor.block.name for tensor in tensors))


def test_llama_files_have_the_one_head_size_that_llama_cpp_loads(tmp_path):
    geometry = small("llama-8b", d_v=64)
    with pytest.raises(ValueError, match=r"d_v: .* d_k .32., not 64; only_attention=True"):
        make_gguf(tmp_path / "whole", geometry)
    assert not list(tmp_path.iterdir())
    make_gguf(tmp_path / "attention", geometry, only_attention=True)


def test_deepseek_r1_q2_k_is_the_file_of_the_pull_requests_log():
    geometry = named_geometry("deepseek-r1").resized(mla_form="both")
    tensors = plan_tensors(geometry, "Q2_K")
    assert len(tensors) == 1147
    assert count_types(tensors) == {"F32": 361, "Q2_K": 544, "Q3_K": 180, "Q6_K": 1, "IQ4_NL": 61}
    assert round(sum(tensor.n_weights for tensor in tensors) / 1e9, 3) == 672.050
    assert round(sum(tensor.n_bytes for tensor in tensors) / 2**30, 3) == 227.689


@pytest.mark.parametrize(
    ("name", "n_tensors", "billions"),
    [("deepseek-v2-lite", 404, 15.706), ("llama-8b", 292, 8.030), ("deepseek-r1", 1086, 671.026)],
)
def test_sizes_of_the_named_models(name, n_tensors, billions):
    tensors = plan_tensors(name)
    assert len(tensors) == n_tensors
    assert round(sum(tensor.n_weights for tensor in tensors) / 1e9, 3) == billions


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("form", MLA_FORMS)
def test_every_tensor_name_is_one_of_the_architectures(name, form):
    geometry = named_geometry(name).resized(mla_form=form)
    arch = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[geometry.architecture]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    for spec in tensor_list(geometry):
        stem = spec.name.rpartition(".")[0]
        layer = stem.split(".")[1] if stem.startswith("blk.") else "x"
        assert stem.replace(f"blk.{layer}.", "blk.{bid}.") in known
        assert min(spec.shape) > 0


def test_types_of_the_mix_its_fallbacks_and_overrides():
    geometry = named_geometry("deepseek-v2-lite")
    by_name = {t.spec.name: t.block.name for t in plan_tensors(geometry, "Q2_K")}
    assert by_name["blk.1.ffn_gate_exps.weight"] == "Q2_K"
    assert by_name["blk.1.ffn_down_exps.weight"] == "IQ4_NL"  # 1408 columns
    assert by_name["blk.1.ffn_down_shexp.weight"] == "Q3_K"
    assert by_name["blk.0.attn_k_b.weight"] == "IQ4_NL"  # 128 columns
    assert by_name["blk.0.attn_v_b.weight"] == "Q2_K"
    assert by_name["blk.0.attn_output.weight"] == "Q3_K"
    assert by_name["blk.1.ffn_gate_inp.weight"] == by_name["blk.0.attn_norm.weight"] == "F32"
    assert (by_name["token_embd.weight"], by_name["output.weight"]) == ("Q2_K", "Q6_K")
    pure = count_types(plan_tensors(geometry, "Q2_K", pure=True))
    assert set(pure) == {"Q2_K", "IQ4_NL", "F32"}
    types = {"output": "q8_0", "token_embd": "BF16", "attn_output": "F16"}
    by_name = {t.spec.name: t.block.name for t in plan_tensors(geometry, "Q2_K", types=types)}
    assert by_name["output.weight"] == "Q8_0" and by_name["token_embd.weight"] == "BF16"
    assert by_name["blk.26.attn_output.weight"] == "F16"
    odd = plan_tensors(small("deepseek-v2-lite", d_v=17), "Q6_K", pure=True)
    by_name = {t.spec.name: t.block.name for t in odd}
    assert by_name["blk.0.attn_output.weight"] == "F16"  # 51 columns
    assert by_name["blk.0.attn_kv_a_mqa.weight"] == "Q6_K"
    assert by_name["blk.0.attn_v_b.weight"] == "Q8_0"  # 64 columns


def types_of(name, qtype, **choices):
    return count_types(plan_tensors(named_geometry(name), qtype, **choices))


def test_mixes_are_those_of_real_files():
    """Llama 3.1 8B's and Mixtral's by llama.cpp, and the types that DeepSeek V3's dynamic file has."""
    assert types_of("llama-8b", "Q4_K_M") == {"Q4_K": 193, "Q6_K": 33, "F32": 66}
    of_mixtral = types_of("mixtral-8x7b", "q4_k_m")
    assert (of_mixtral["Q8_0"], of_mixtral["Q5_K"]) == (64, 32)  # attn_k and attn_v, attn_output
    assert types_of("llama-8b", "Q5_K_M")["Q6_K"] == 33
    assert types_of("llama-8b", "IQ4_XS")["Q5_K"] == 32  # attn_v
    of_v3 = types_of("deepseek-v3", "UD-Q2_K_XL")
    assert set(of_v3) == {"F32", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert (
        max(of_v3, key=of_v3.get) != "Q8_0" and of_v3["Q2_K"] == 2 * 58
    )  # gates and ups of experts
    assert types_of("gpt-oss-20b", "MXFP4_MOE")["MXFP4"] == 3 * 24
    geometry = named_geometry("deepseek-r1").resized(mla_form="fused")
    of_r1 = {"Q4_K": 190, "Q5_K": 116, "Q6_K": 184, "IQ2_XXS": 6, "IQ1_S": 168, "F32": 361}
    assert count_types(plan_tensors(geometry, "UD-IQ1_S")) == of_r1
    # attn_v and token_embd, ffn_down of four layers, output
    assert types_of("llama-8b", "IQ2_XXS") == {
        "IQ2_XXS": 32 * 6 - 4, "Q4_K": 32, "Q2_K": 5, "Q5_K": 1, "F32": 66
    }  # fmt: skip
    assert types_of("llama-8b", "IQ2_M")["IQ3_S"] == 1 + 4 + 32  # and attn_output
    assert types_of("llama-8b", "IQ1_M")["IQ2_XXS"] == 32  # attn_output
    assert types_of("llama-8b", "IQ3_XXS")["IQ2_S"] == 64  # attn_q and attn_k
    assert (
        types_of("llama-8b", "IQ3_XS")["IQ3_XXS"] == 2 * 32 + 2 * 24
    )  # and gate, up in the middle
    assert types_of("llama-8b", "IQ3_M")["Q4_K"] == 2 * 32 + 4
    assert types_of("llama-8b", "TQ1_0")["Q4_K"] == 1
    assert set(types_of("llama-8b", "Q4_K_M", pure=True)) == {"Q4_K", "F32"}
    assert types_of("llama-8b", "Q4_K") == types_of("llama-8b", "Q4_K_S")


def test_rows_that_do_not_fill_blocks_get_what_llama_cpp_gives_them():
    geometry = named_geometry("gpt-oss-20b")  # rows of 2880
    for qtype, instead in (
        ("Q4_K_M", "Q5_0"),
        ("Q5_K_M", "Q5_1"),
        ("IQ3_XXS", "IQ4_NL"),
        ("TQ2_0", "Q4_0"),
    ):
        by_name = {t.spec.name: t.block.name for t in plan_tensors(geometry, qtype)}
        assert by_name["blk.0.ffn_gate_exps.weight"] == instead
        assert by_name["blk.0.attn_norm.weight"] == "F32"


def test_types_by_regular_expression():
    geometry = small("llama-8b", n_layer=3)
    type_map = [(r"blk\.[01]\.ffn_down", "Q8_0"), ("ffn_", "Q5_1"), ("attn_q", "q6_k")]
    by_name = {
        t.spec.name: t.block.name
        for t in plan_tensors(geometry, "Q4_K_M", types={"ffn_down": "F16"}, type_map=type_map)
    }
    assert by_name["blk.1.ffn_down.weight"] == "Q8_0" and by_name["blk.2.ffn_down.weight"] == "Q5_1"
    assert by_name["blk.0.ffn_up.weight"] == "Q5_1" and by_name["blk.0.attn_q.weight"] == "Q6_K"
    assert by_name["blk.0.ffn_norm.weight"] == "F32"
    for form, message in (
        ("ffn_norm", "no tensor's name matches 'ffn_norm'.*float32 always"),
        ("outptu", "no tensor's name matches"),
        ("ffn_(", "no regular expression"),
    ):
        with pytest.raises(ValueError, match=f"type_map: .*{message}"):
            plan_tensors(geometry, "Q4_K_M", type_map=[(form, "Q8_0")])
    with pytest.raises(ValueError, match="'Q7' is no GGUF type"):
        plan_tensors(geometry, "Q4_K_M", type_map=[("ffn", "Q7")])


def test_a_type_that_the_gguf_package_does_not_know_is_written(tmp_path):
    path = tmp_path / "q2_0.gguf"
    make_gguf(path, small("llama-8b"), "Q2_0")
    with quant.open(path) as model:
        assert model.metadata["general.file_type"] == 41
        assert {info.type_name for info in map(model.tensor_info, model)} >= {"Q2_0", "F32"}
        weights = quant.dequantize(model["blk.0.ffn_gate.weight"])
    assert np.isfinite(weights).all() and weights.any()


def test_resizing():
    lite = named_geometry("deepseek-v2-lite")
    assert lite.resized(n_head=4).n_head_kv == 4
    assert named_geometry("llama-8b").resized(n_head=16).n_head_kv == 4
    assert named_geometry("llama-8b").resized(n_head=2).n_head_kv == 1
    assert lite.resized(n_expert=4).n_expert_used == 4
    assert lite.resized(n_expert=4, n_expert_used=1).n_expert_used == 1
    assert named_geometry("deepseek-r1").resized(n_layer=2).n_layer_dense == 1
    assert named_geometry("deepseek-r1").resized(n_layer=1).n_layer_dense == 0
    assert lite.resized(n_layer=1, n_layer_dense=1, n_expert=0).n_layer_dense == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),  # n_embd, n_head, n_head_kv, d_k = d_v = n_rot
    [
        (dict(), (4096, 32, 8, 128)),
        (dict(n_head=7), (896, 7, 1, 128)),
        (dict(n_embd=512), (512, 4, 1, 128)),
        (dict(n_embd=512, n_head=8), (512, 8, 2, 64)),
        (dict(d_k=64), (2048, 32, 8, 64)),
        (dict(n_embd=500, n_head=8), (500, 8, 2, 128)),  # no whole heads: as given
        (dict(n_embd=512, n_head=8, d_k=32, d_v=32, n_rot=32), (512, 8, 2, 32)),
    ],
)
def test_heads_and_width_of_llama_hang_together(sizes, expected):
    geometry = named_geometry("llama-8b").resized(**sizes)
    found = geometry.n_embd, geometry.n_head, geometry.n_head_kv, geometry.d_k
    assert found == expected and geometry.d_v == geometry.n_rot == geometry.d_k
    assert geometry.resized(n_layer=3) == dataclasses.replace(geometry, n_layer=3)


@pytest.mark.parametrize("name", [*MOST, "n_vocab"])
def test_every_size_has_an_end(name):
    for architecture in GEOMETRIES:
        geometry = dataclasses.replace(named_geometry(architecture), **{name: 99999999999999})
        with pytest.raises(ValueError, match=rf"^{name}: at most \d+; got 99999999999999"):
            plan_tensors(geometry)
    sizes = {field.name for field in dataclasses.fields(geometry) if field.type == "int"}
    assert sizes == {*MOST, "n_vocab"}


def test_the_longest_rows_have_an_end():
    geometry = dataclasses.replace(named_geometry("deepseek-r1"), n_head=2**16, n_head_kv=2**16)
    with pytest.raises(ValueError, match=r"blk\.0\.attn_output\.weight: rows of 8388608 weights"):
        plan_tensors(geometry)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("llama-8b", dict(n_layer=0), "n_layer: at least 1; got 0"),
        ("llama-8b", dict(n_embd=-1), "n_embd: at least 1; got -1"),
        ("llama-8b", dict(n_head=3, n_head_kv=2), "n_head: a multiple of n_head_kv; got 3"),
        ("llama-8b", dict(n_rot=31), "n_rot: an even number; got 31"),
        ("llama-8b", dict(n_rot=256), "n_rot: at most d_k; got 256"),
        ("llama-8b", dict(n_ff=0), "n_ff: at least 1"),
        ("llama-8b", dict(n_expert=8), "n_expert_used: at least 1 where layers have experts"),
        ("qwen3-8b", dict(n_expert=8), "n_expert: qwen3 has none; got 8"),
        ("llama-8b", dict(qkv_bias=True), "qkv_bias: llama has none; got True"),
        (
            "llama-8b",
            dict(tokenizer_model="bert"),
            "tokenizer_model: one of gpt2, llama; got 'bert'",
        ),
        ("gemma-3-4b", dict(window=0), "window: gemma3 needs at least 1; got 0"),
        ("gpt-oss-20b", dict(n_ff_expert=0), "n_ff_expert: at least 1 where layers have experts"),
        ("deepseek-v3", dict(n_expert=252), "n_expert: a multiple of n_expert_group"),
        ("deepseek-v3", dict(n_expert=8), "n_expert: .* two or more a group; got 8"),
        ("deepseek-v3", dict(n_expert_group_used=9), "n_expert_group_used: at most n_expert_group"),
        ("deepseek-v3", dict(n_expert_group_used=0), "n_expert_group_used: at least 1"),
        ("llama-8b", dict(kv_lora_rank=8), "kv_lora_rank: llama has none; got 8"),
        ("deepseek-r1", dict(kv_lora_rank=0), "kv_lora_rank: deepseek2 needs at least 1"),
        ("deepseek-r1", dict(n_rot=192), "d_k: deepseek2 needs more than n_rot"),
        ("deepseek-r1", dict(n_head_kv=1), "n_head_kv: deepseek2 needs n_head"),
        ("deepseek-r1", dict(n_expert=0), "n_expert_used: at least 1 where layers have experts"),
        ("deepseek-r1", dict(n_expert_used=257), "n_expert_used: at most n_expert; got 257"),
        ("deepseek-r1", dict(mla_form="none"), "mla_form: one of split, fused, both; got 'none'"),
    ],
)
def test_sizes_that_make_no_model(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        named_geometry(name).resized(**sizes)


def test_llama3_rope_divisors():
    """Against the formula as Llama's own code has it, one frequency at a time."""
    scaling = Llama3Scaling()
    divisors = scaling.divisors(128, 500000.0)
    assert divisors.shape == (64,) and divisors.dtype == np.float32
    for index, found in enumerate(divisors):
        frequency = 500000.0 ** (-2 * index / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            scaled = frequency
        elif wavelength > 8192 / 1:
            scaled = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            scaled = (1 - smooth) * frequency / 8 + smooth * frequency
        assert found == pytest.approx(frequency / scaled, rel=1e-6)


@pytest.mark.parametrize("n_vocab", [MIN_VOCAB, 512, 20000])
def test_tokenizer(n_vocab):
    values = {key: value for key, _, value in tokenizer(small("llama-8b", n_vocab=n_vocab))}
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == n_vocab == len(set(tokens)) == len(values["tokenizer.ggml.token_type"])
    assert {"Ċ", "Ġ", "!", "ÿ"} <= set(tokens)  # newline, space, ... as llama.cpp looks for them
    merges = [merge.split(" ") for merge in values["tokenizer.ggml.merges"]]
    assert len(merges) == n_vocab - MIN_VOCAB + 1
    rank = {token: index for index, token in enumerate(tokens)}
    for left, right in merges:
        assert max(rank[left], rank[right]) < rank[left + right]


@pytest.mark.parametrize("n_vocab", [MIN_VOCAB - 1, MAX_VOCAB + 1, 10**6])
def test_vocabularies_that_do_not_work(n_vocab, tmp_path):
    with pytest.raises(ValueError, match=rf"n_vocab: at (least|most) \d+.*got {n_vocab}"):
        make_gguf(tmp_path / "x.gguf", small("llama-8b", n_vocab=n_vocab))
    assert not list(tmp_path.iterdir())
