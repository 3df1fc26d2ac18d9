"""The rules of kqcap, ik_llama.cpp and llama.cpp against what the latter two log that they take."""

import gguf_bytes as gb
import numpy as np
import pytest

from lowlevel.attention.plan import plan_attention
from quant.models.architectures import ARCHITECTURES, REFUSED, REFUSED_KEYS
from quant.models.engines import ENGINES, IK, KQCAP, LLAMA_CPP
from quant.models.fit import MIB, Setting, device_memory, fit
from quant.models.geometry import AttentionGeometry
from quant.models.memory_model import _memory_model, memory_model, of_geometry
from quant.models.model import plan_model
from quant.models.named_geometries import GEOMETRIES, named_geometry
from quant.models.planned_file import PlannedFile
from tools.cli import main

GEMMA3_270M = {
    "general.architecture": "gemma3",
    "gemma3.block_count": 18,
    "gemma3.context_length": 32768,
    "gemma3.embedding_length": 640,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.sliding_window": 512,
}
GPT_OSS_20B = {
    "general.architecture": "gpt-oss",
    "gpt-oss.block_count": 24,
    "gpt-oss.context_length": 131072,
    "gpt-oss.embedding_length": 2880,
    "gpt-oss.attention.head_count": 64,
    "gpt-oss.attention.head_count_kv": 8,
    "gpt-oss.attention.key_length": 64,
    "gpt-oss.attention.value_length": 64,
    "gpt-oss.attention.sliding_window": 128,
}
MINICPM3 = {
    "general.architecture": "minicpm3",
    "minicpm3.block_count": 62,
    "minicpm3.context_length": 32768,
    "minicpm3.embedding_length": 2560,
    "minicpm3.attention.head_count": 40,
    "minicpm3.attention.head_count_kv": 40,
    "minicpm3.attention.key_length": 96,
    "minicpm3.attention.kv_lora_rank": 256,
    "minicpm3.rope.dimension_count": 32,
}
LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.context_length": 8192,
    "llama.embedding_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}


def of_keys(keys, n_vocab=1000):
    """A model of these metadata keys with an embedding and no other weights."""
    geometry = AttentionGeometry.from_metadata(keys)
    tensors = [("token_embd.weight", "F16", 2 * n_vocab, (n_vocab, geometry.n_embd))]
    return _memory_model("model", tensors, geometry, 0)


def all_on_one(model, rule, *setting, **more):
    (device,) = device_memory(model, rule, Setting(*setting, **more), [2**50], [1])
    return device


# K/V caches, MiB, that both log at u-batch 512 where it is not said: in llama.cpp (b11739) windowed layers keep
# the window and a u-batch, in whole 256 cells; gpt-oss-20b and minicpm3 as in FACTS
@pytest.mark.parametrize(
    ("keys", "n_ctx", "n_ubatch", "llama_cpp", "ik"),
    [
        (GEMMA3_270M, 4096, 512, 27, 72),
        (GEMMA3_270M, 8192, 512, 39, 144),
        (GEMMA3_270M, 32768, 512, 111, 576),
        (GEMMA3_270M, 8192, 2048, 61.5, 144),
        (GEMMA3_270M, 2100, 300, 21.75, 2304 * 18 / 1024),
        (GEMMA3_270M, 700, 2000, 13.5, 13.5),
        (GPT_OSS_20B, 131072, 2048, 3126, 6144),
        (MINICPM3, 32768, 512, 24800, 24800),
    ],
)
def test_kv_caches_by_layer(keys, n_ctx, n_ubatch, llama_cpp, ik):
    model = of_keys(keys)
    assert all_on_one(model, LLAMA_CPP, n_ctx, n_ubatch).kv == llama_cpp * MIB
    assert all_on_one(model, IK, n_ctx, n_ubatch).kv == ik * MIB


def test_kqcap_keeps_a_window_and_a_u_batch():
    model = of_keys(GEMMA3_270M)
    assert all_on_one(model, KQCAP, 4000, 100, n_threads=1).kv == (3 * 4000 + 15 * 612) * 1024
    assert all_on_one(model, KQCAP, 300, 100, n_threads=1).kv == 18 * 300 * 1024
    # the layers that see all keys are those that take most scratch
    full = plan_attention(
        n_head=4, n_head_kv=1, n_tokens=100, n_kv=4000, d_k=256, d_v=256, kv_dtype="float16", n_threads=1
    )  # fmt: skip
    assert all_on_one(model, KQCAP, 4000, 100, n_threads=1).compute.scratch == full.scratch_bytes


def test_patterns_that_files_name():
    key = "gemma3.attention.sliding_window_pattern"
    windows = AttentionGeometry.from_metadata({**GEMMA3_270M, key: 3}).window
    assert windows == (512, 512, 0) * 6
    flags = np.arange(18) % 2 == 0
    windows = AttentionGeometry.from_metadata({**GEMMA3_270M, key: flags}).window
    assert windows == (512, 0) * 9
    assert AttentionGeometry.from_metadata({**GEMMA3_270M, key: 1}).window == 0
    for bad in (flags[:17], np.arange(18), "two", -1):
        with pytest.raises(ValueError, match="sliding_window_pattern"):
            AttentionGeometry.from_metadata({**GEMMA3_270M, key: bad})
    # heads of another size where there is a window
    keys = {**GEMMA3_270M, "gemma3.attention.key_length_swa": 128}
    keys["gemma3.attention.value_length_swa"] = 128
    assert all_on_one(of_keys(keys), IK, 4096, 512).kv == (3 * 1024 + 15 * 512) * 4096
    # phi3 names a window that engines do not apply
    phi3 = {key.replace("llama", "phi3"): value for key, value in LLAMA.items()}
    phi3 = {**phi3, "general.architecture": "phi3", "phi3.attention.sliding_window": 256}
    assert AttentionGeometry.from_metadata(phi3).window == 0


def test_layers_that_predict_further_tokens_have_no_cache():
    keys = {**LLAMA, "llama.nextn_predict_layers": 1}
    geometry = AttentionGeometry.from_metadata(keys)
    assert (geometry.n_layer, geometry.n_predictor) == (3, 1)
    tensors = [
        ("blk.2.attn_q.weight", "F16", 100, (8, 8)),
        ("blk.3.nextn.eh_proj.weight", "F16", 7, (8, 8)),
    ]
    model = _memory_model("model", tensors, geometry, 0)
    assert {weight.kind: weight.n_bytes for weight in model.weights} == {
        "attention": 100,
        "predictors (NextN)": 7,
    }
    assert len(model.layers) == 3 and "may leave them out" in model.notes[0]
    with pytest.raises(ValueError, match="nextn_predict_layers' is 4, of 4"):
        AttentionGeometry.from_metadata({**LLAMA, "llama.nextn_predict_layers": 4})


@pytest.mark.parametrize("name", [*REFUSED, "from-the-future"])
def test_architectures_that_are_not_modelled_are_refused_by_name(name):
    keys = {key.replace("llama", name): value for key, value in LLAMA.items()}
    with pytest.raises(ValueError, match=f"architecture '{name}'"):
        AttentionGeometry.from_metadata({**keys, "general.architecture": name})
    assert name not in ARCHITECTURES


@pytest.mark.parametrize("key", [key.name for key in REFUSED_KEYS] + ["attention.sliding_window"])
def test_keys_that_are_not_modelled_are_refused_by_name(key):
    with pytest.raises(ValueError, match=f"'llama.{key}'"):
        AttentionGeometry.from_metadata({**LLAMA, f"llama.{key}": 4})
    assert AttentionGeometry.from_metadata({**LLAMA, f"llama.{key}": 0}).window == 0


def write_file(path, keys, n_tensors=0):
    """A file of these metadata keys, with some tensors of one block each."""
    entries = [gb.entry(k, gb.STRING if isinstance(v, str) else gb.U32, v) for k, v in keys.items()]
    rows = [gb.row(f"blk.{i}.x", (8,), gb.F32_TENSOR, 32 * i) for i in range(n_tensors)]
    path.write_bytes(gb.padded(gb.header(entries, rows)) + bytes(32 * n_tensors))
    return path


def test_layers_with_a_window_are_said_beside_the_tiles(tmp_path, capsys):
    path = write_file(tmp_path / "gemma.gguf", GEMMA3_270M)
    assert main(["plan", str(path), "-t", "1"]) == 0
    assert "15 layers see a window of 512 keys" in capsys.readouterr().out


def test_types_of_unknown_size_are_bounded_and_it_is_said(tmp_path):
    """ik_llama.cpp's own: a tensor ends at the latest where the next one begins."""
    entries = [
        gb.entry(k, gb.STRING if isinstance(v, str) else gb.U32, v) for k, v in LLAMA.items()
    ]
    rows = [gb.row("blk.0.attn_q.weight", (256,), 137, 0)]
    rows += [gb.row(f"blk.{i}.x", (8,), gb.F32_TENSOR, 96 + 32 * i) for i in range(4)]
    path = tmp_path / "ik.gguf"
    path.write_bytes(gb.padded(gb.header(entries, rows)) + bytes(96 + 128))
    model = memory_model(path)
    assert [weight.n_bytes for weight in model.weights][:2] == [96, 32]
    assert model.weights[0].qtype == "IQ2_K" and "bounded" in model.notes[0]


def test_no_layer_with_heads(tmp_path, capsys):
    path = write_file(tmp_path / "none.gguf", {**LLAMA, "llama.attention.head_count_kv": 0}, 4)
    for more in ([], ["--vram", "8GiB"]):
        assert main(["plan", str(path), *more]) == 2
        error = capsys.readouterr().err
        assert "no layer has attention heads" in error and "head_count_kv' 0" in error


@pytest.mark.parametrize("count", [4097, 4 * 10**8, 2**32 - 1])
def test_a_number_of_layers_out_of_all_bounds_is_refused_at_once(tmp_path, capsys, count):
    """Of a file of some hundred bytes; it took minutes and gigabytes."""
    path = write_file(tmp_path / "deep.gguf", {**LLAMA, "llama.block_count": count})
    for more in ([], ["--vram", "8GiB"]):
        assert main(["plan", str(path), *more]) == 2
        assert f"block_count' is {count}; at most 4096" in capsys.readouterr().err
    with pytest.raises(ValueError, match="n_layer: at most 4096"):
        named_geometry("llama-8b").resized(n_layer=count)


@pytest.mark.parametrize(
    ("key", "count"),
    [("head_count_kv", 2**31), ("head_count", 2**31), ("key_length", 2**20)],
)
def test_sizes_out_of_all_bounds_are_refused(tmp_path, capsys, key, count):
    path = write_file(tmp_path / "odd.gguf", {**LLAMA, f"llama.attention.{key}": count})
    for more in ([], ["--vram", "8GiB"]):
        assert main(["plan", str(path), *more]) == 2
        assert f"llama.attention.{key}' is {count}; at most" in capsys.readouterr().err


# What the engines log as compute buffer, MiB: model, context, u-batch, flash attention, -mla, -amb (0: none).
# On the CPU, llama.cpp b11739 and ik_llama.cpp 8337e4cd3 (wheel 0.1.5), header-true sparse files, 2026-11-30;
# the last four are ik's on an H200.
MEASURED = [
    ("llama.cpp", "llama-8b", 4096, 512, 0, None, 0, 316.02),
    ("llama.cpp", "llama-8b", 16384, 512, 0, None, 0, 1108.02),
    ("llama.cpp", "llama-8b", 8192, 2048, 0, None, 0, 2320.06),
    ("llama.cpp", "llama-8b", 8192, 512, 1, None, 0, 298.52),
    ("llama.cpp", "llama-8b", 8192, 2048, 1, None, 0, 1194.08),
    ("llama.cpp", "gemma", 4096, 512, 0, None, 0, 530.27),
    ("llama.cpp", "gemma", 32768, 512, 1, None, 0, 551.28),
    ("llama.cpp", "gemma", 4096, 4096, 1, None, 0, 4210.23),
    # of a vocabulary of 512, so that the logits do not hide what a device without them takes
    ("llama.cpp", "llama-8b-512", 2048, 512, 1, None, 0, 126.02),
    ("llama.cpp", "llama-8b-512", 8192, 2048, 1, None, 0, 528.08),
    ("llama.cpp", "lite-512", 8192, 2048, 1, None, 0, 368.56),
    ("llama.cpp", "lite-experts", 2048, 512, 1, None, 0, 71.52),
    ("llama.cpp", "r1-experts", 2048, 512, 1, None, 0, 280.02),
    ("llama.cpp", "r1-experts-4", 2048, 2048, 1, None, 0, 704.06),
    ("llama.cpp", "lite", 16384, 2048, 0, None, 0, 2416.06),
    ("llama.cpp", "lite", 16384, 2048, 1, None, 0, 944.06),
    ("llama.cpp", "lite-fused", 16384, 2048, 0, None, 0, 2336.06),
    ("llama.cpp", "r1-5", 65536, 512, 0, None, 0, 16918.02),
    ("llama.cpp", "r1-5", 65536, 2048, 1, None, 0, 1880.06),
    ("ik", "llama-8b", 8192, 512, 0, None, 0, 544.01),
    ("ik", "llama-8b", 8192, 512, 1, None, 0, 258.5),
    ("ik", "llama-8b", 8192, 2048, 0, None, 64, 2176.02),
    ("ik", "gemma", 32768, 512, 1, None, 0, 513.25),
    ("ik", "gemma", 4096, 4096, 1, None, 0, 4106.0),
    ("ik", "llama-8b-512", 2048, 512, 1, None, 0, 54.01),
    ("ik", "llama-8b-512", 8192, 2048, 1, None, 0, 208.02),
    ("ik", "lite-512", 8192, 2048, 1, 3, 128, 289.07),
    ("ik", "lite-experts", 2048, 512, 1, 1, 0, 54.51),
    ("ik", "r1-experts", 2048, 512, 1, 1, 0, 176.01),
    ("ik", "r1-experts-4", 2048, 2048, 1, 1, 0, 416.02),
    ("ik", "lite-both", 16384, 512, 0, 0, 0, 568.27),
    ("ik", "lite-both", 16384, 512, 0, 1, 0, 594.01),
    ("ik", "lite-both", 16384, 512, 0, 3, 0, 612.27),
    ("ik", "lite-both", 16384, 512, 1, 3, 0, 424.27),
    ("ik", "lite-both", 16384, 2048, 0, 2, 64, 816.0),
    ("ik", "lite-both", 16384, 2048, 0, 1, 512, 880.02),
    ("ik", "lite-both", 32768, 2048, 0, 2, 0, 4593.07),
    ("ik", "r1-5-both", 16384, 512, 0, 0, 256, 272.68),
    ("ik", "r1-5-both", 65536, 512, 0, 2, 256, 942.68),
    ("ik", "r1-5-both", 65536, 512, 1, 3, 256, 676.55),
    ("ik", "r1-5-both", 65536, 512, 1, 3, 0, 12496.68),
    ("ik", "r1-5-both", 65536, 2048, 0, 2, 256, 2538.21),
    ("ik", "lite", 16384, 2048, 1, 3, 64, 816),
    ("ik", "lite", 16384, 2048, 0, 2, 512, 897),
    ("ik", "r1-5", 163840, 2048, 1, 3, 256, 1418),
    ("ik", "r1-5", 163840, 2048, 0, 2, 512, 4742),
]


@pytest.fixture(scope="module")
def models():
    lite, r1, llama = (GEOMETRIES[n] for n in ("deepseek-v2-lite", "deepseek-r1", "llama-8b"))
    experts = dict(n_layer=3, n_vocab=512, n_layer_dense=0, n_head=8, n_head_kv=8)
    geometries = {
        "llama-8b": llama,
        "llama-8b-512": llama.resized(n_vocab=512),
        "lite-512": lite.resized(n_vocab=512),
        "lite-experts": lite.resized(n_vocab=512, n_layer_dense=0),
        "r1-experts": r1.resized(**experts),
        "r1-experts-4": r1.resized(**experts, n_expert_used=4),
    }
    for form, suffix in (("split", ""), ("fused", "-fused"), ("both", "-both")):
        geometries[f"lite{suffix}"] = lite.resized(mla_form=form)
        geometries[f"r1-5{suffix}"] = r1.resized(n_layer=5, mla_form=form)
    found = {name: of_geometry(geometry, "Q8_0") for name, geometry in geometries.items()}
    return {**found, "gemma": of_keys(GEMMA3_270M, n_vocab=262144)}


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: "-".join(map(str, case[:7])))
def test_compute_buffers_are_near_what_was_measured(models, case):
    engine, name, n_ctx, n_ubatch, flash, mla, amb, measured = case
    setting = dict(mla=mla, flash=bool(flash), amb=amb * MIB or None)
    device = all_on_one(models[name], ENGINES[engine], n_ctx, n_ubatch, **setting)
    ratio = sum(device.compute) / MIB / measured
    low, high = (0.99, 1.03) if engine == "llama.cpp" else (0.96, 1.20)
    assert low <= ratio <= high, ratio


# (engine, model, flash attention, -mla) -> MiB of K/V cache at 16384, as logged
@pytest.mark.parametrize(
    ("engine", "name", "flash", "mla", "measured"),
    [
        ("llama.cpp", "lite", 1, None, 486),
        ("llama.cpp", "lite-fused", 1, None, 4320),
        ("ik", "lite-both", 0, 0, 4320),
        ("ik", "lite-both", 0, 1, 918),
        ("ik", "lite-both", 1, 1, 486),
        ("ik", "lite-both", 0, 2, 486),
        ("ik", "lite", 1, None, 486),
        ("kqcap", "lite", 1, 0, 486),
        ("kqcap", "lite", 1, None, 486),
    ],
)
def test_kv_caches_by_form(models, engine, name, flash, mla, measured):
    setting = dict(mla=mla, flash=bool(flash), n_threads=1)
    assert all_on_one(models[name], ENGINES[engine], 16384, 512, **setting).kv == measured * MIB


@pytest.mark.parametrize("mla", [None, 0, 1, 2, 3])
def test_forms_of_latent_attention_by_their_passes(models, mla):
    """Latents are cached whatever the form; what is read as it is takes most, of the queries as latents."""
    geometry = named_geometry("deepseek-v2-lite")
    asked = "auto" if mla is None else mla
    options = dict(n_ctx=16384, n_ubatch=512, amb=None, mla=asked, n_threads=1)
    _, memory = plan_model(PlannedFile(geometry, "Q8_0"), **options)
    device = all_on_one(models["lite"], KQCAP, 16384, 512, n_threads=1, mla=mla)
    assert sum(device.compute) + device.kv == memory.pool and not device.compute.decompressed
    assert device.kv == memory.kv_cache == 27 * 16384 * 576 * 2
    absorbed = 4 * 512 * 16 * (576 + 512)
    assert (memory.activations > absorbed) == (mla in (1, 2))


def test_what_is_not_modelled_is_estimated(models):
    """For a GPU of so many multiprocessors: latents as they are, or K and V of all heads."""
    absorbed = plan_attention(
        n_head=16, n_head_kv=1, n_tokens=512, n_kv=16384, d_k=576, d_v=512, kv_dtype="float16",
        n_threads=1, v_in_k=True, device="cudasim",
    )  # fmt: skip
    setting = dict(n_threads=1, device="cudasim")
    device = all_on_one(models["lite"], KQCAP, 16384, 512, **setting)
    assert device.compute.scratch == absorbed.scratch_bytes
    heads = plan_attention(
        n_head=16, n_tokens=512, n_kv=16384, d_k=192, d_v=128, kv_dtype="float16", n_threads=1, device="cudasim"
    )  # fmt: skip
    device = all_on_one(models["lite"], KQCAP, 16384, 512, **setting, mla=0)
    assert device.compute.scratch == heads.scratch_bytes
    assert device.kv == 486 * MIB
    for n_threads, words in ((1, "not for -t multiprocessors"), (None, "to the byte")):
        setting = Setting(16384, 512, n_threads=n_threads, device="cudasim")
        assert words in KQCAP.counted(models["lite"], setting)


def test_advice_about_amb_is_what_fits_and_only_where_it_matters(models):
    for name, choices in (
        ("llama-8b", {}),  # grouped heads are never split
        ("lite", {"mla": 1}),  # flash attention on latents has nothing to split
        ("lite", {"amb": 64 * MIB}),  # one was given
    ):
        answer = fit(models[name], IK, [48 * 2**30], n_ctx=16384, ubatches=[512], **choices)
        assert answer.fits and answer.amb_most is None
    assert (
        fit(models["lite"], LLAMA_CPP, [48 * 2**30], n_ctx=16384, ubatches=[512]).amb_most is None
    )
    choices = dict(n_ctx=65536, ubatches=[512], flash=False, mla=2)
    needed = all_on_one(models["lite"], IK, 65536, 512, flash=False, mla=2, amb=512 * MIB).total
    answer = fit(models["lite"], IK, [needed], amb=None, **choices)
    # without a cap it is too much: what would help is said
    assert not answer.fits and 512 * MIB <= answer.amb_most < 1024 * MIB
    room = all_on_one(models["lite"], IK, 65536, 512, flash=False, mla=2).total
    answer = fit(models["lite"], IK, [room], **choices)
    with_it = fit(models["lite"], IK, [room], amb=answer.amb_most, **choices)
    assert answer.fits and answer.amb_most >= 512 * MIB and with_it.fits


def test_llama_cpp_does_not_load_both_forms(models):
    with pytest.raises(ValueError, match="loads no file with attn_k_b beside attn_kv_b"):
        all_on_one(models["lite-both"], LLAMA_CPP, 4096, 512)
