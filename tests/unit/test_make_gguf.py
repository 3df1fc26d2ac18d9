"""make_gguf: what is written, and that nothing half-written stays."""

import argparse
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
from quant.models.geometry import MLA_FORMS
from quant.models.named_geometries import named_geometry
from quant.models.synthetic.make_gguf import make_gguf, plan_tensors
from quant.models.synthetic.metadata import MIN_VOCAB
from tools import cli
from tools import make_gguf as command

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
