"""make_gguf: what is planned, what is written, and that nothing half-written stays."""

import argparse
import collections
import dataclasses
import io
import json
import math
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from small_models import SMALL, small

import quant
from quant.models.geometry import MLA_FORMS, MOST, Llama3Scaling
from quant.models.named_geometries import GEOMETRIES, named_geometry
from quant.models.synthetic.make_gguf import make_gguf, plan_tensors
from quant.models.synthetic.metadata import MAX_VOCAB, MIN_VOCAB, tokenizer
from quant.models.synthetic.tensor_list import tensor_list
from tools import cli
from tools import make_gguf as command

ROOT = pathlib.Path(__file__).resolve().parents[2]


def count_types(tensors):
    return dict(collections.Counter(tensor.block.name for tensor in tensors))


# ---------------------------------------------------------------- what is planned


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


# ---------------------------------------------------------------- what is written


NAMES_AND_FORMS = [
    *((name, "split") for name in SMALL if not name.startswith("deepseek")),
    *((name, form) for name in ("deepseek-v2-lite", "deepseek-r1") for form in MLA_FORMS),
]


@pytest.mark.parametrize("qtype", ["F32", "Q8_0", "IQ4_NL", "Q2_K"])
@pytest.mark.parametrize(("name", "form"), NAMES_AND_FORMS)
def test_files_are_as_planned(tmp_path, name, form, qtype):
    geometry = small(name, mla_form=form)
    path = tmp_path / "model.gguf"
    planned = make_gguf(path, geometry, qtype)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    with quant.open(path) as model:
        assert list(model) == [tensor.spec.name for tensor in planned]
        for tensor in planned:
            found = model[tensor.spec.name]
            assert (found.shape, found.qtype) == (tensor.spec.shape, tensor.block.qtype)
            assert found.n_bytes == tensor.n_bytes
        assert model.attention == geometry.attention
        assert len(model.metadata["tokenizer.ggml.tokens"]) == geometry.n_vocab
        assert model.metadata["general.quantization_version"] == 2
        file_type = gguf.LlamaFileType(model.metadata["general.file_type"])
        assert qtype in file_type.name
        assert model.metadata["tokenizer.ggml.model"] == geometry.tokenizer_model
    oracle = gguf.GGUFReader(path)  # checks the layout in its own way
    assert len(oracle.tensors) == len(planned)
    assert sum(int(tensor.n_bytes) for tensor in oracle.tensors) == sum(t.n_bytes for t in planned)


def arrays(path):
    """All tensors of a float32 file."""
    with quant.open(path) as model:
        return {name: tensor.as_array() for name, tensor in model.items()}


def test_weights_are_scaled_like_real_ones(tmp_path):
    geometry = small("deepseek-r1", n_vocab=3000, q_lora_rank=512)
    make_gguf(tmp_path / "m.gguf", geometry, "F32", seed=secrets.randbits(40))
    weights = arrays(tmp_path / "m.gguf")
    for name, array in weights.items():
        if "norm" in name:
            assert abs(array.mean() - 1) < 0.1 and array.std() == pytest.approx(0.2, rel=0.3)
        elif "token_embd" in name:
            assert array.std() == pytest.approx(2, rel=0.02)
        elif "exp_probs_b" in name:
            assert 0 < np.abs(array).max() < 0.1
        else:
            inputs = geometry.kv_lora_rank if "attn_k_b" in name else array.shape[-1]
            tolerance = 6 / math.sqrt(array.size)
            assert array.std() * math.sqrt(inputs) == pytest.approx(1, abs=tolerance), name
            assert abs(array.mean()) * math.sqrt(inputs) < tolerance, name
    flat = [array.ravel()[:60] for name, array in weights.items() if "norm" not in name]
    assert len({part.tobytes() for part in flat}) == len(flat)  # no two tensors alike


def test_the_forms_of_mla_hold_the_same_weights(tmp_path):
    found = {}
    for form in MLA_FORMS:
        make_gguf(tmp_path / form, small("deepseek-v2-lite", mla_form=form), "F32")
        found[form] = arrays(tmp_path / form)
    geometry = small("deepseek-v2-lite")
    for layer in range(geometry.n_layer):
        prefix = f"blk.{layer}.attn_"
        kv_b = found["fused"][f"{prefix}kv_b.weight"].reshape(geometry.n_head, -1, 64)
        k_b = found["split"][f"{prefix}k_b.weight"]
        v_b = found["split"][f"{prefix}v_b.weight"]
        assert k_b.shape == (3, 64, 32) and v_b.shape == (3, 32, 64)
        np.testing.assert_array_equal(k_b, kv_b[:, :32].transpose(0, 2, 1))
        np.testing.assert_array_equal(v_b, kv_b[:, 32:])
        both = found["both"]
        np.testing.assert_array_equal(both[f"{prefix}kv_b.weight"].reshape(kv_b.shape), kv_b)
        np.testing.assert_array_equal(both[f"{prefix}k_b.weight"].reshape(k_b.shape), k_b)
        np.testing.assert_array_equal(both[f"{prefix}v_b.weight"].reshape(v_b.shape), v_b)
    for name in found["split"].keys() & found["fused"].keys():
        np.testing.assert_array_equal(found["split"][name], found["fused"][name])


def test_the_seed_alone_decides(tmp_path):
    geometry = small("llama-8b", n_ff=5000, n_embd=1024)  # several slabs a tensor
    made = {}
    for name, options in {
        "one": dict(n_threads=1),
        "three": dict(n_threads=3),
        "other": dict(seed=1),
    }.items():
        make_gguf(tmp_path / name, geometry, "Q8_0", **options)
        made[name] = (tmp_path / name).read_bytes()
    assert made["one"] == made["three"]
    assert made["one"] != made["other"] and len(made["one"]) == len(made["other"])
    make_gguf(tmp_path / "attention", geometry, "Q8_0", only_attention=True)
    with quant.open(tmp_path / "attention") as part, quant.open(tmp_path / "one") as whole:
        assert 0 < len(part) < len(whole)
        assert all(".attn_" in name for name in part)
        assert part.attention == whole.attention
        for name in part:
            np.testing.assert_array_equal(part[name].data, whole[name].data)


def test_memory_stays_small(tmp_path):
    geometry = named_geometry("deepseek-v2-lite").resized(n_layer=1, n_expert=8, n_vocab=MIN_VOCAB)
    make_gguf(tmp_path / "warm", small("llama-8b"), "F16")
    tracemalloc.start()
    try:
        planned = make_gguf(tmp_path / "big", geometry, "F16", n_threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(tensor.n_weights for tensor in planned) * 4 > 300e6
    assert peak < 40e6


def test_progress(tmp_path):
    seen = []
    planned = make_gguf(
        tmp_path / "m.gguf", small("llama-8b"), "F16", progress=lambda *pair: seen.append(pair)
    )
    total = sum(tensor.n_bytes for tensor in planned)
    assert seen[-1] == (total, total)
    assert all(all_bytes == total for _, all_bytes in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---------------------------------------------------------------- what can go wrong


def test_an_existing_file_is_not_replaced_unless_asked(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"model\.gguf exists; .*--force"):
        make_gguf(path, small("llama-8b"))
    assert path.read_bytes() == b"precious"
    make_gguf(path, small("llama-8b"), overwrite=True)
    assert len(quant.open(path)) > 0


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk gone")])
def test_nothing_half_written_stays(tmp_path, failure):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")

    def fail(done, total):
        if done > total // 2:
            raise failure

    with pytest.raises((KeyboardInterrupt, OSError)):
        make_gguf(path, small("llama-8b"), "F16", overwrite=True, progress=fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"old"


def test_a_file_made_by_another_meanwhile_is_kept(tmp_path):
    path = tmp_path / "model.gguf"

    def another(done, total):
        path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        make_gguf(path, small("llama-8b"), "F16", progress=another)
    assert path.read_bytes() == b"theirs" and len(list(tmp_path.iterdir())) == 1


def test_a_disk_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"takes 664\.29 GiB, the disk has 953\.67 MiB free"):
        make_gguf(tmp_path / "r1.gguf", "deepseek-r1")
    assert not list(tmp_path.iterdir())


def test_a_disk_is_as_large_as_it_is(tmp_path, monkeypatch):
    """Nothing is kept back: a file whose tensors just fit beside its header is written."""
    tensors = plan_tensors(small("llama-8b"), "F16")
    need = sum(-(-tensor.n_bytes // 32) * 32 for tensor in tensors)
    free = iter([need, need, need, need - 1])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free)))
    make_gguf(tmp_path / "m.gguf", small("llama-8b"), "F16")
    with pytest.raises(OSError, match="the disk has"):  # the header took what was left
        make_gguf(tmp_path / "n.gguf", small("llama-8b"), "F16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]


def test_sigterm_leaves_nothing(tmp_path):
    command_line = [
        sys.executable,
        "-m",
        "tools",
        "make-gguf",
        "llama-8b",
        "--layers=3",
        "--vocab=300",
    ]
    process = subprocess.Popen(
        [*command_line, str(tmp_path / "m.gguf")], cwd=ROOT, stderr=subprocess.PIPE
    )
    while not list(tmp_path.glob(".*.part")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_bad_arguments(tmp_path):
    path = tmp_path / "m.gguf"
    geometry = small("llama-8b")
    for arguments, options, message in (
        ((path, "llama-9b"), {}, "geometry: one of deepseek-v2-lite.*got 'llama-9b'"),
        ((path, geometry, "Q8_K"), {}, "Q8_K is not supported"),
        ((path, geometry, "nonsense"), {}, "no GGUF type.*mixes: .*Q4_K_M"),
        ((path, geometry), dict(types={"output": "Q7"}), "no GGUF type"),
        ((path, geometry), dict(types={"outptu": "F16"}), "no tensor has the role 'outptu'"),
        ((path, geometry), dict(seed=-1), "seed: a whole number from 0"),
        ((path, geometry), dict(seed=0.5), "seed: a whole number from 0"),
        ((path, geometry), dict(n_threads=0), "n_threads"),
        ((tmp_path, geometry), {}, "is a folder"),
        ((tmp_path / "no" / "m.gguf", geometry), {}, "the folder .* does not exist"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            make_gguf(*arguments, **options)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["make-gguf", *map(str, arguments)]))


def as_options(sizes):
    options = {name: option for option, name, _ in command.SIZES}
    return [item for name, value in sizes.items() for item in (options[name], value)]


def test_command_takes_mixes_and_types_by_expression(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    sizes = as_options(SMALL["llama-8b"])
    options = ("--type", "q4_k_m", "--type-map", "blk[.]0[.]ffn=Q8_0", "--type-map", "attn_q=Q5_1")
    assert run_command("llama-8b", *sizes, *options, path) == 0
    capsys.readouterr()
    with quant.open(path) as model:
        assert model.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
        assert model.tensor_info("blk.0.ffn_up.weight").type_name == "Q8_0"
        assert model.tensor_info("blk.1.attn_q.weight").type_name == "Q5_1"
    with pytest.raises(SystemExit):
        run_command("llama-8b", *sizes, "--type-map", "Q8_0", path)
    assert "is not REGEX=TYPE, such as 'ffn_down=Q6_K'" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    sizes = as_options(SMALL["deepseek-r1"])
    assert run_command("deepseek-r1", *sizes, "--type", "q2_k", "--json", path) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["path"] == str(path) and summary["written"] and summary["type"] == "Q2_K"
    with quant.open(path) as model:
        assert model.attention == small("deepseek-r1").attention
        by_type = {name: row["bytes"] for name, row in summary["by_type"].items()}
        assert by_type == model.n_bytes_by_type
        assert summary["bytes"] == model.n_bytes and summary["tensors"] == len(model)
    assert (
        run_command("deepseek-r1", *sizes, "--only", "attention", "--mla", "fused", "--force", path)
        == 0
    )
    assert "IQ4_NL" not in capsys.readouterr().out
    with quant.open(path) as model:
        assert "blk.0.attn_kv_b.weight" in model and "output.weight" not in model


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    argv = ["make-gguf", "llama-8b", "--vocab", "10", str(tmp_path / "x.gguf")]
    for more in ([], ["--dry-run"]):
        assert cli.main([*argv, *more]) == 2
        assert "n_vocab: at least 260" in capsys.readouterr().err


def test_command_dry_run(tmp_path, capsys):
    path = tmp_path / "r1.gguf"
    assert run_command("deepseek-r1", "--type", "Q2_K", "--mla", "both", "--dry-run", path) == 0
    assert "| IQ4_NL |      61 |" in capsys.readouterr().out
    assert not path.exists()


def test_it_is_said_before_what_will_be_written(tmp_path, capsys):
    argv = ["make-gguf", "deepseek-v2-lite", "--layers", "2", "--heads", "4", "--dry-run", "--json"]
    assert cli.main([*argv, str(tmp_path / "m.gguf")]) == 0
    out, err = capsys.readouterr()
    assert "GiB of tensors" in err and "--dense-layers" not in err and "--heads-kv 4" in err
    assert "ik_llama.cpp will not load it: " in err
    assert [failure["engine"] for failure in json.loads(out)["not_loaded_by"]] == ["ik_llama.cpp"]


@pytest.mark.parametrize(
    ("answer", "written"), [(None, False), ("n\n", False), ("", False), ("y\n", True)]
)
def test_large_files_are_asked_about(tmp_path, capsys, monkeypatch, answer, written):
    monkeypatch.setattr(command, "ASK_ABOVE", 10**5)
    path = tmp_path / "m.gguf"
    argv = ["make-gguf", "llama-8b", *map(str, as_options(SMALL["llama-8b"])), str(path)]
    if answer is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert cli.main(argv) == (0 if written else 2)
    err = capsys.readouterr().err
    assert "--yes" in err if answer is None else "[y/N]" in err
    assert path.exists() == written
    assert cli.main([*argv, "--yes", "--force"]) == 0 and path.exists()
