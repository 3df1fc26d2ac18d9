"""What fits: against the log of the pull request's 15 GPUs, the plan, and a model file's own sizes."""

import argparse
import json
import random
import secrets

import numpy as np
import pytest

import quant
from lowlevel.attention.plan import plan_attention
from quant.gguf.model_file import ModelFileError
from quant.models.engines import KQCAP
from quant.models.fit import (
    CONTEXT_STEP,
    MIB,
    OUTPUT,
    BudgetError,
    FeedForward,
    Layer,
    ModelMemory,
    Setting,
    Weight,
    device_memory,
    fit,
    row_bytes,
    split_layers,
    weights_by_kind,
)
from quant.models.memory_model import memory_model
from quant.models.synthetic.make_gguf import make_gguf
from tools.cli import main
from tools.options import memory_list

# DeepSeek-R1 Q2_K on 15 x RTX 3090, as logged in ik_llama.cpp's pull request 237
TENSOR_SPLIT = "37,25,25,25,24.5,24,24,24,24,25,24,25,24,24.5,31"
LOGGED_WEIGHTS = [12615.77, *[15965.27] * 13, 12698.93]
LOGGED_HOST = 289.98
LOGGED_KV = [1080.0, *[720.0] * 13, 540.0]
LOGGED_COMPUTE = 5088.02
R1_LATENTS = dict(
    n_head=128, n_head_kv=1, n_tokens=1024, n_kv=163840, d_k=576, d_v=512, kv_dtype="float16", v_in_k=True
)  # fmt: skip


def new_rng():
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def shown(n_bytes):
    return round(n_bytes / MIB, 2)


def r1_arguments(*more):
    return [
        "plan", "deepseek-r1", "--type", "Q2_K", "--mla", "both", "--vram", "24GiB", "--n-gpu", "15",
        "--tensor-split", TENSOR_SPLIT, "-c", "163840", "-ub", "1024", "-t", "2", "--reserve", "0", *more,
    ]  # fmt: skip


def test_the_pull_requests_fifteen_gpus(capsys):
    assert main(r1_arguments("--json", "--device", "cpu")) == 0
    document = json.loads(capsys.readouterr().out)
    devices = document["devices"]
    assert [shown(device["weights"]) for device in devices] == LOGGED_WEIGHTS
    assert [shown(device["kv"]) for device in devices] == LOGGED_KV
    assert sum(device["kv"] for device in devices) == 10980 * MIB
    assert shown(document["host_weights"]) == LOGGED_HOST
    assert [len(device["layers"]) for device in devices] == [6, *[4] * 13, 3]
    assert [device["has_output"] for device in devices] == [False] * 14 + [True]
    plan = plan_attention(**R1_LATENTS, n_threads=2)
    for device in devices:
        assert plan.scratch_bytes < device["scratch"] < 64 * MIB  # products take more
        assert device["compute"] < LOGGED_COMPUTE * MIB / 6
        assert 0 <= device["free"] == 24 * 2**30 - device["total"]
    by_type = {}
    for row in document["weights"]:
        by_type[row["qtype"]] = by_type.get(row["qtype"], 0) + row["n_tensors"]
    assert by_type == {"Q2_K": 544, "F32": 361, "Q3_K": 180, "IQ4_NL": 61, "Q6_K": 1}


def test_the_same_planned_for_gpus(capsys):
    """Which is the default: memory of devices is a GPU's. Their tiles are larger; -t is their multiprocessors."""
    assert main(r1_arguments("--json")) == 0
    document = json.loads(capsys.readouterr().out)
    plan = plan_attention(**R1_LATENTS, n_threads=2, device="cudasim")
    assert {device["scratch"] for device in document["devices"]} == {plan.scratch_bytes}
    assert [shown(device["weights"]) for device in document["devices"]] == LOGGED_WEIGHTS


def test_the_same_by_ik_llama_cpps_rule(capsys):
    """Its compute buffers, in an estimate; -amb was 2048 there, and the version one of early 2025."""
    argv = [arg for arg in r1_arguments("--json") if arg not in ("-t", "2")]
    argv += ["--engine", "ik", "-fa", "0", "-mla", "2", "-amb", "2048"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engine"] == "ik" and "estimate" in document["counted"]
    assert document["form"] == "decompressed" and document["amb_most"] is None
    assert [shown(device["weights"]) for device in document["devices"]] == LOGGED_WEIGHTS
    assert [shown(device["kv"]) for device in document["devices"]] == LOGGED_KV
    for device in document["devices"]:
        assert 0.85 < device["compute"] / MIB / LOGGED_COMPUTE < 1.1


def test_the_table(capsys):
    assert main(r1_arguments()) == 0
    out = capsys.readouterr().out
    for text in ("12615.77", "15965.27", "12698.93", "10980.00", "289.98", "experts", "3 + output"):
        assert text in out


def reference_split(n_layer, shares):
    """llama.cpp's loop: cumulative shares in float32, the first above the layer's part."""
    total = np.float32(0)
    ends = []
    for share in shares:
        total = np.float32(total + np.float32(share))
        ends.append(total)
    ends = [np.float32(end / total) for end in ends]
    found = []
    for layer in range(n_layer + 1):
        part = np.float32(np.float32(layer) / np.float32(n_layer + 1))
        found.append(next(device for device, end in enumerate(ends) if end > part))
    return found


def test_layers_are_split_as_llama_cpp_does():
    rng = new_rng()
    for _ in range(300):
        n_layer = rng.randrange(1, 130)
        shares = [
            rng.choice([0, 1, 1, 2.5, 24.5, rng.random()]) for _ in range(rng.randrange(1, 17))
        ]
        if sum(shares):
            devices = split_layers(n_layer, shares)
            assert devices == reference_split(n_layer, shares)
            assert all(shares[device] > 0 for device in devices)


@pytest.mark.parametrize("shares", [[], [0, 0], [-1, 2], [float("nan")], [[1]]])
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ValueError, match="tensor_split"):
        split_layers(4, shares)


def small_model(rng, n_layer=6):
    """Layers of different K/V widths."""
    layers = tuple(
        Layer(
            8,
            rng.choice([1, 2, 4]),
            64,
            64,
            0,
            0,
            0,
            FeedForward(),
            {"all": {"x": 100 * rng.randrange(9)}},
        )
        for _ in range(n_layer)
    )
    weights = [Weight(f"{i}", "attention", "Q8_0", rng.randrange(2**22), i) for i in range(n_layer)]
    weights.append(Weight("output", "output", "F16", rng.randrange(2**22), OUTPUT))
    return ModelMemory("small", tuple(weights), layers, 2**16, 1000, 64)


def test_the_largest_context_is_the_largest():
    rng = new_rng()
    for _ in range(20):
        model = small_model(rng)
        vram = [rng.randrange(2**22, 2**26) for _ in range(rng.randrange(1, 4))]
        choices = dict(kv_type=rng.choice(["f32", "f16", "q8_0"]), n_threads=2)
        answer = fit(model, KQCAP, vram, reserve=rng.randrange(2**20), **choices)
        for row in answer.frontier:
            setting = Setting(row["n_ctx"], row["n_ubatch"], **choices)
            reserve = answer.devices[0].reserve
            if row["n_ctx"]:
                devices = device_memory(model, KQCAP, setting, vram, vram, reserve)
                assert all(device.free >= 0 for device in devices)
            if row["n_ctx"] < model.context_length:
                more = setting._replace(n_ctx=row["n_ctx"] + CONTEXT_STEP)
                devices = device_memory(model, KQCAP, more, vram, vram, reserve)
                assert any(device.free < 0 for device in devices)
        if answer.fits:
            assert answer.setting.n_ctx == max(
                row["n_ctx"]
                for row in answer.frontier
                if (row["n_ubatch"] >= 512) == (answer.setting.n_ubatch >= 512)
            )
            assert answer.amb_most is None  # what "auto" takes does not grow with it
        else:
            assert min(device.free for device in answer.devices) < 0
            again = [answer.smallest_vram] * len(vram)
            assert fit(model, KQCAP, again, shares=vram, n_ctx=CONTEXT_STEP, ubatches=[128],
                       reserve=answer.devices[0].reserve, **choices).fits  # fmt: skip


def test_the_pieces_add_up():
    rng = new_rng()
    model = small_model(rng)
    setting = Setting(1000, 300, n_threads=1)
    (device,) = device_memory(model, KQCAP, setting, [2**30], [1])
    assert device.weights == sum(weight.n_bytes for weight in model.weights)
    assert device.kv == sum(2 * 1000 * 128 * layer.n_head_kv for layer in model.layers)
    assert device.total + device.free == 2**30
    plans = [
        plan_attention(n_head=8, n_head_kv=layer.n_head_kv, n_tokens=300, n_kv=1000, d_k=64, d_v=64,
                       kv_dtype="float16", n_threads=1)
        for layer in model.layers
    ]  # fmt: skip
    assert device.compute.scratch == max(plan.scratch_bytes for plan in plans)
    assert sum(row["n_bytes"] for row in weights_by_kind(model)) == device.weights


def test_the_kv_caches_of_types():
    assert row_bytes(97, "f32") == 97 * 4
    assert row_bytes(97, "f16") == 97 * 2
    assert row_bytes(64, "q8_0") + row_bytes(33, "q8_0") == (2 + 2) * 34


def test_an_amb_below_the_smallest_tile():
    model = small_model(new_rng())
    with pytest.raises(BudgetError):
        fit(model, KQCAP, [2**30], amb=1000)
    with pytest.raises(ValueError, match="tensor_split: 2 devices need"):
        fit(model, KQCAP, [2**30] * 2, shares=[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    geometry = quant.models.named_geometries.named_geometry("deepseek-v2-lite")
    make_gguf(folder / "lite.gguf", geometry.resized(n_layer=3, n_embd=256, n_ff=512, n_expert=4,
              n_ff_expert=256, n_vocab=512, n_head=2), "IQ4_NL")  # fmt: skip
    geometry = quant.models.named_geometries.named_geometry("llama-8b")
    make_gguf(folder / "llama.gguf", geometry.resized(n_layer=2, n_embd=256, n_ff=512, n_vocab=512,
              n_head=4, n_head_kv=2, d_k=128, d_v=128, n_rot=128), "Q4_K")  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ["lite.gguf", "llama.gguf"])
def test_a_files_tensors_are_all_somewhere_once(files, name):
    model = memory_model(files / name)
    with quant.open(files / name) as file:
        assert sum(weight.n_bytes for weight in model.weights) == file.n_bytes
        assert len(model.weights) == len(file)
        by_type = {}
        for row in weights_by_kind(model):
            by_type[row["qtype"]] = by_type.get(row["qtype"], 0) + row["n_bytes"]
        assert by_type == file.n_bytes_by_type
        attention = file.attention
    kinds = {weight.kind for weight in model.weights}
    assert {"token embedding", "output", "attention", "norms", "feed-forward"} <= kinds
    devices = device_memory(model, KQCAP, Setting(256, 128, n_threads=1), [2**30] * 3, [1] * 3)
    answer = fit(model, KQCAP, [2**30] * 3, n_threads=1)
    assert sum(device.weights for device in devices) + answer.host_weights == file.n_bytes
    kinds = {layer[:7] for layer in model.layers}
    latent = (2, 2, 192, 128, 0, 512, 64) if attention.is_mla else (4, 2, 128, 128, 0, 0, 0)
    assert kinds == {latent}


def test_tied_embeddings_count_on_both_sides(files):
    from quant.models.memory_model import _memory_model

    with quant.open(files / "llama.gguf") as file:
        infos = [file.tensor_info(name) for name in file if name != "output.weight"]
        tensors = [(info.name, info.type_name, info.n_bytes, info.shape) for info in infos]
        model = _memory_model("tied", tensors, file.attention, 0)
    embedding = [weight for weight in model.weights if "token_embd" in weight.name]
    output = [weight for weight in model.weights if weight.name == "output.weight"]
    assert [weight.n_bytes for weight in output] == [weight.n_bytes for weight in embedding]
    assert output[0].layer == OUTPUT and model.n_vocab == 512


def test_the_command(capsys, files):
    assert (
        main(
            [
                "plan",
                str(files / "lite.gguf"),
                "--vram",
                "64MiB,32MiB",
                "-t",
                "2",
                "--reserve",
                "0",
                "--json",
            ]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert [device["vram"] for device in document["devices"]] == [64 * MIB, 32 * MIB]
    assert document["fits"] and document["setting"]["kv_type"] == "f16"
    # too small: exit code 1, and what would do
    assert main(["plan", "-m", str(files / "lite.gguf"), "--vram", "1MiB", "-t", "2"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out and "every device needs" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--vram", "1GiB"], "name a model"),
        (["llama-8b", "-m", "x", "--vram", "1GiB"], "one model"),
        (["llama-8b", "--vram", "1GiB,2GiB", "--n-gpu", "3"], "different numbers"),
        (["llama-8b", "--vram", "1GiB", "-c", "1,2"], "one value"),
        (["llama-8b", "--vram", "1GiB", "--type", "Q9"], "Q9"),
        (["missing.gguf", "--vram", "1GiB"], "missing.gguf"),
        (
            [
                "llama-8b",
                "--vram",
                "64GiB",
                "--device",
                "cpu",
                "--method",
                "steps",
                "-amb",
                "1",
                "-c",
                "9999",
            ],
            "1048576",
        ),
        (
            ["llama-8b", "--vram", "24GB", "--engine", "llama.cpp", "-amb", "64"],
            "-amb: .* has none",
        ),
        (
            ["llama-8b", "--vram", "24GB", "--engine", "ik", "--method", "steps"],
            "--method: .* has none",
        ),
        (["llama-8b", "--vram", "24GB", "--method", "steps"], "--method steps: with --device cpu"),
        (
            ["llama-8b", "--vram", "24GB", "--engine", "ik", "-fa", "0", "--kv-type", "q8_0"],
            "quantised V with flash attention only",
        ),
        (["llama-8b", "--vram", "24GB", "-fa", "0"], "-fa: --engine kqcap has none"),
        (["llama-8b", "--vram", "24GB", "--engine", "ik", "--device", "cpu"], "--device: for"),
        (["deepseek-r1", "--vram", "24GB", "--engine", "llama.cpp", "-mla", "3"], "tensors decide"),
        (["llama-8b", "--vram", "24GB", "-mla", "1"], "no latent attention"),
        (["llama-8b", "-mla", "1"], "no latent attention"),
        (["deepseek-r1", "--n-gpu", "15"], "--n-gpu: .* by --vram"),
        (["llama-8b", "--engine", "ik"], "--engine: .* by --vram"),
        (["-mla", "1"], "for a model"),
    ],
)
def test_bad_use(capsys, argv, message):
    import re

    assert main(["plan", *argv]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("24576", 24576),  # MiB, as llama.cpp's options
        ("24GiB", 24576),
        ("24G", 24576),
        ("24g", 24576),
        ("1.5G", 1536),
        ("512m", 512),
        ("24GB", 24 * 10**9 / MIB),
        ("64MiB,128", [64, 128]),
    ],
)
def test_memory_of_devices_as_people_write_it(text, mib):
    assert memory_list(text) == [n * MIB for n in (mib if isinstance(mib, list) else [mib])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24", r"MiB, and 24 MiB is less than any device has; write 24GiB, or 24MiB"),
        ("8,24GiB", r"write 8GiB"),
        ("25769803776", r"for bytes write 25769803776B"),
        ("24TB0", "no size"),
        ("-1", "no size"),
        ("0", "without memory"),
        ("5000TiB", "5000 TiB, more than any device has"),
    ],
)
def test_memory_of_devices_that_makes_no_sense_is_asked_about(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        memory_list(text)


def test_beyond_the_models_own_context(capsys):
    argv = ["plan", "llama-8b", "--vram", "80G", "-c", "200000", "--json"]
    assert main(argv) == 0
    assert "200000 is beyond the model's own context of 131072" in json.loads(
        capsys.readouterr().out
    )["notes"][0]  # fmt: skip
    assert main(["plan", "llama-8b", "-c", "200000", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "beyond the model's own" in document["warnings"][0] and len(document["rows"]) == 2
    # of the contexts shown by default, none is beyond it
    assert main(["plan", "llama-8b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["n_kv"] for row in document["rows"]} == {8192, 16000, 24000}
    assert not document["warnings"]


@pytest.mark.parametrize("engine", ["kqcap", "ik", "llama.cpp"])
def test_whose_memory_is_counted_is_said(capsys, engine):
    argv = ["plan", "deepseek-v2-lite", "--vram", "24G", "-c", "16384", "-ub", "2048"]
    assert main([*argv, "--engine", engine]) == 0
    out = capsys.readouterr().out
    name = {"ik": "ik_llama.cpp"}.get(engine, engine)
    assert f"counted: {name}'s" in out and "margin" in out and "1024.00" in out
    assert (
        "to the byte" if engine == "kqcap" else "estimate"
    ) in out and "latent attention, " in out
    if engine != "kqcap":
        assert "logits" in out and "800.00" in out  # u-batch x vocabulary x 4


def test_layers_that_are_not_there(tmp_path, files):
    data = (files / "llama.gguf").read_bytes()
    key = b"llama.block_count"
    at = data.index(key) + len(key) + 4
    (tmp_path / "many.gguf").write_bytes(data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
    with pytest.raises(ModelFileError, match="block_count' is 2147483647"):
        memory_model(tmp_path / "many.gguf")
