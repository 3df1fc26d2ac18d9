"""kqcap bench --attention for real, tiny: its rows, its checks, its default file."""

import importlib.metadata
import json
import sys
import tempfile

import numpy as np
import pytest

import lowlevel
import quant
from lowlevel.cuda import cupy_api
from lowlevel.cudasim.errors import CompilerNotFoundError
from quant.models.named_geometries import named_geometry
from quant.models.synthetic.make_gguf import make_gguf
from tools import process, tables
from tools.bench import default_model, device_bench, measure
from tools.bench.workload import make_workload
from tools.cli import main

MIB = 2**20
TINY = ["-p", "256", "-ub", "64", "-r", "1", "-t", "2"]


def tiny(path, name="deepseek-v2-lite", qtype="Q8_0", **sizes):
    geometry = named_geometry(name).resized(n_layer=2, n_embd=256, **sizes)
    make_gguf(path, geometry, qtype, only_attention=True)
    return str(path)


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "latent.gguf"
    return tiny(path, n_head=3, n_head_kv=3, kv_lora_rank=64)


@pytest.fixture(scope="module")
def grouped_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "grouped.gguf"
    return tiny(path, "llama-8b", "IQ4_NL", n_head=6, n_head_kv=2, d_k=64, d_v=32, n_rot=64)


def bench(capsys, *argv, code=0):
    assert main(["bench", "--attention", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_rows_hold_their_limits(capsys, latent_model):
    document = bench(capsys, "-m", latent_model, *TINY, "-amb", "0,1")
    assert document["n_head"] == 3 and document["d_k"] == 192 and document["d_v"] == 128
    rows = document["rows"]
    assert [(r["method"], r["amb_mib"]) for r in rows] == [
        ("auto", 0), ("auto", 1), ("steps", 0), ("steps", 1),
    ]  # fmt: skip
    for row in rows:
        assert row["broken"] == [] and row["cannot_run"] == ""
        assert row["peak_bytes"] == row["scratch_bytes"] == row["plan"]["scratch_bytes"]
        assert row["peak_bytes"] <= row["budget"]
        assert 0 < row["error"] <= 5e-6
        assert row["tokens_per_second"] > 0 and len(row["seconds"]) == 1
        assert row["n_tokens"] == 64
    reference = rows[2]
    assert reference["ratio"] == 1.0
    assert reference["plan"]["heads"] == 3 and reference["plan"]["kq_bytes"] == 3 * 64 * 256 * 4
    assert rows[3]["budget"] == MIB


def test_every_kind_of_list(capsys, grouped_model):
    rows = bench(
        capsys, "-m", grouped_model, "-p", "100,150", "-ub", "16,64", "-amb", "0", "-t", "1,2",
        "--kv-type", "f16,q8_0", "-r", "2", "--method", "auto",
    )["rows"]  # fmt: skip
    assert len(rows) == 16
    assert all(row["broken"] == [] and len(row["seconds"]) == 2 for row in rows)
    # the last u-batch is what is left of the prompt
    assert {(r["n_prompt"], r["n_ubatch"], r["n_tokens"]) for r in rows} == {
        (100, 16, 4), (100, 64, 36), (150, 16, 6), (150, 64, 22),
    }  # fmt: skip
    assert all(row["ratio"] is None for row in rows)  # no steps at amb 0 to compare with


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_full_prompt(capsys, latent_model, kv_type):
    argv = ["-m", latent_model, "-p", "200", "-ub", "64", "-amb", "0", "--full", "--layer", "1"]
    rows = bench(capsys, *argv, "--kv-type", kv_type)["rows"]
    assert {row["plan"]["n_kv"] for row in rows} <= {192, 200}  # the u-batch that takes most
    for row in rows:
        assert 0.5 < row["score_std"] < 3 and row["error_bound"] == 5e-6
        assert row["n_tokens"] == 200 and row["broken"] == [] and 0 < row["error"] <= 5e-6


def test_a_row_that_cannot_run_says_what_it_would_need(capsys, latent_model):
    argv = ["-m", latent_model, "-p", "4200", "-ub", "128", "-amb", "1", "-r", "1"]
    last = (4200 - 1) % 128 + 1
    auto, steps = bench(capsys, *argv)["rows"]
    assert auto["broken"] == [] and auto["peak_bytes"] <= MIB
    assert steps["needs_bytes"] == -(-4200 * last * 4 // 256) * 256 > MIB
    assert str(steps["needs_bytes"]) in steps["cannot_run"] and steps["seconds"] == []
    # the only one: bad use, and the table still says it
    assert main(["bench", "--attention", *argv, "--method", "steps"]) == 2
    captured = capsys.readouterr()
    assert f"needs {steps['needs_bytes'] / MIB:.2f}" in captured.out
    assert str(steps["needs_bytes"]) in captured.err and captured.err.count("\n") == 1


def test_a_full_prompt_needs_what_its_largest_ubatch_needs(capsys, latent_model):
    argv = ["-m", latent_model, "-p", "2100", "-ub", "512", "-amb", "1", "-r", "1", "--full"]
    _, steps = bench(capsys, *argv)["rows"]
    assert steps["needs_bytes"] == 512 * 2048 * 4  # of the last but one: the last has 52 tokens


def test_scratch_beyond_free_memory_is_not_tried(capsys, latent_model, monkeypatch):
    monkeypatch.setattr(process, "available_bytes", lambda: 264 * MIB)
    _, steps = bench(
        capsys, "-m", latent_model, "-p", "2048", "-ub", "512", "-amb", "0", "-r", "1"
    )["rows"]
    assert steps["needs_bytes"] == 3 * 2048 * 512 * 4 and "free memory" in steps["cannot_run"]


def test_table(capsys, latent_model):
    assert (
        main(["bench", "--attention", "-m", latent_model, *TINY, "-amb", "0,1", "-ub", "32"]) == 0
    )
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 and len({len(line) for line in lines}) == 1
    assert "n_ubatch" in lines[0] and "n_prompt" not in lines[0]
    assert "±" not in captured.out  # one run has no spread
    assert all(" 0,1 |" in line for line in lines[2:])  # budgets that change nothing: said once
    assert captured.out.count("the same plan") == 1
    assert captured.err == ""  # no progress bar off a terminal


def test_a_bar_takes_nothing_from_standard_output(capsys, monkeypatch):
    """On a terminal: what is printed beside the bar goes where standard output goes, a file or a pipe."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes anything for a terminal
    with tables.progress() as progress:
        progress.add_task("runs", total=2)
        with tables.paused(progress):
            print("a row")
        print("another")
    out, err = capsys.readouterr()
    assert out == "a row\nanother\n" and "left" in err


def test_spread_is_of_three_runs_at_least(capsys, latent_model):
    for n_runs, has_spread in ((2, False), (3, True)):
        argv = ["-m", latent_model, "-p", "256", "-ub", "64", "-amb", "0", "--method", "auto"]
        assert main(["bench", "--attention", *argv, "-r", str(n_runs)]) == 0
        assert ("±" in capsys.readouterr().out) == has_spread


def test_equal_plans_are_run_once(capsys, latent_model, monkeypatch):
    runs = []
    run = measure.Prompt.run
    monkeypatch.setattr(measure.Prompt, "run", lambda *args: runs.append(1) or run(*args))
    argv = ["-m", latent_model, *TINY, "-amb", "64,0,1,512", "--method", "auto"]
    rows = bench(capsys, *argv)["rows"]
    assert [row["amb_mib"] for row in rows] == [64, 0, 1, 512]
    assert len(runs) == 2 and len({tuple(row["seconds"]) for row in rows}) == 1
    assert len({row["budget"] for row in rows}) == 4
    assert {row["peak_bytes"] for row in rows} == {row["plan"]["scratch_bytes"] for row in rows}


def test_an_interrupt_keeps_what_is_measured(capsys, latent_model, monkeypatch):
    """Ctrl-C in the second round of the second type of K and V."""
    calls = []
    run = measure.Prompt.run

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4 + 4:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(measure.Prompt, "run", interrupted)
    argv = ["-m", latent_model, "-p", "100", "-ub", "16", "-amb", "0", "-r", "3"]
    argv += ["--method", "auto", "--kv-type", "f32,f16,q8_0"]
    assert main(["bench", "--attention", *argv]) == 130
    out, err = capsys.readouterr()
    assert out.count("type_kv f32") == out.count("type_kv f16") == 1 and "q8_0" not in out
    assert "timed runs: 2" in out and "interrupted; 2 rows are measured" in err
    calls.clear()
    document = bench(capsys, *argv, code=130)
    assert document["interrupted"]
    assert [len(row["seconds"]) for row in document["rows"]] == [3, 2]


def test_an_error_without_text_is_no_row_that_can_run(capsys, latent_model, monkeypatch):
    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr(measure.Prompt, "run", no_memory)
    assert (
        main(["bench", "--attention", "-m", latent_model, *TINY, "-amb", "0", "--method", "auto"])
        == 2
    )
    out, err = capsys.readouterr()
    assert "cannot run: out of memory" in out and "out of memory" in err


def test_without_cupy_or_a_compiler_it_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy_api.load.cache_clear()
    monkeypatch.setattr(cupy_api, "_driver_major", lambda: 12)
    required = [
        "numpy>=1",
        'cupy-cuda12x>=13; extra == "cuda12"',
        'cupy-cuda13x>=14; extra == "cuda13"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    assert main(["bench", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "(CUDA 12): pip install 'cupy-cuda12x>=13'" in err and "13x" not in err
    monkeypatch.setattr(cupy_api, "_driver_major", lambda: None)
    assert main(["bench", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "no NVIDIA driver" in err and "12x" in err and "13x" in err

    def no_compiler(*args):
        raise CompilerNotFoundError("install g++")

    monkeypatch.setattr(device_bench, "_run", no_compiler)
    assert main(["bench", "--device", "cudasim"]) == 2
    assert "install g++" in capsys.readouterr().err


@pytest.mark.parametrize(
    "misbehave, broken",
    [
        (lambda pool, out: None, "error is over 5e-06"),  # writes nothing: stale rows must not pass
        (lambda pool, out: out.fill(0.001), "error is over 5e-06"),
        (lambda pool, out: pool.free(pool.empty(2**19)), "pool peak is not the plan's scratch"),
    ],
)
def test_broken_limits_give_exit_code_1(capsys, latent_model, monkeypatch, misbehave, broken):
    attention = lowlevel.attention

    def wrapped(*operands, pool=None, out=None, **options):
        result = attention(*operands, pool=pool, out=None, **options)
        if pool is not None:
            misbehave(pool, out)
        return result

    monkeypatch.setattr(measure.lowlevel, "attention", wrapped)
    (row,) = bench(capsys, "-m", latent_model, *TINY, "-amb", "64", "--method", "auto", code=1)[
        "rows"
    ]
    assert broken in row["broken"]


def test_bad_layer_and_missing_tensor(capsys, latent_model, tmp_path):
    assert main(["bench", "--attention", "-m", latent_model, *TINY, "--layer", "2"]) == 2
    assert "layer: the model has layers 0 to 1; got 2" in capsys.readouterr().err


def test_plan_of_a_model_file(capsys, latent_model, grouped_model):
    for path, n_head_kv, ik_path in [(latent_model, 3, "mla"), (grouped_model, 2, "standard")]:
        assert main(["plan", "-m", path, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["geometry"]["n_head_kv"] == n_head_kv
        assert document["geometry"]["ik_path"] == ik_path
        assert {row["plan"]["d_k"] for row in document["rows"]} == {document["geometry"]["d_k"]}


@pytest.mark.parametrize("blocked", [False, True])
def test_the_default_file_is_made_once(monkeypatch, tmp_path, blocked):
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    if blocked:
        cache.write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    # the real geometry, but narrow: it is made in a moment
    monkeypatch.setattr(
        "quant.models.named_geometries.named_geometry",
        lambda name: named_geometry(name).resized(n_embd=64, n_head=1, n_head_kv=1),
    )
    path = default_model.path()
    assert path.is_relative_to(temporary if blocked else cache)
    with quant.open(path) as model:
        assert "blk.0.attn_q.weight" in model and "blk.1.attn_q.weight" not in model
    written = path.stat().st_mtime_ns
    assert default_model.path() == path and path.stat().st_mtime_ns == written
    assert len(list(path.parent.iterdir())) == 1
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert default_model.path() == path
    quant.open(path).close()


@pytest.mark.parametrize("form", ["fused", "both"])
def test_all_forms_of_the_latent_decompression_agree(tmp_path, form):
    work = []
    for mla_form in ("split", form):
        path = tiny(
            tmp_path / f"{mla_form}.gguf", qtype="F32", n_head=3, n_head_kv=3, kv_lora_rank=64,
            mla_form=mla_form,
        )  # fmt: skip
        with quant.open(path) as model:
            work.append(make_workload(model, n_prompt=70, n_query=9))
    np.testing.assert_allclose(work[0].k, work[1].k, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(work[0].v, work[1].v, rtol=1e-5, atol=1e-5)


def test_a_longer_prompt_begins_with_the_same_tokens(latent_model):
    with quant.open(latent_model) as model:
        short = make_workload(model, n_prompt=1100, n_query=1100, seed=7)
        long = make_workload(model, n_prompt=1300, n_query=250, seed=7)
        other = make_workload(model, n_prompt=1100, n_query=1, seed=8)
    np.testing.assert_allclose(long.k[:, :1100], short.k, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(long.v[:, :1100], short.v, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(long.q[:, :50], short.q[:, 1050:], rtol=1e-5, atol=1e-5)
    assert not np.allclose(other.k, short.k)
    assert short.scale == pytest.approx((1 + 0.0707 * np.log(40)) ** 2 / np.sqrt(192), rel=1e-6)


def test_resident_memory_is_counted():
    before = process.resident_bytes()
    if before is None:
        pytest.skip("no /proc/self/status here")
    exact = process.reset_peak_resident()
    block = np.ones(64 * MIB, np.uint8)
    assert 60 * MIB <= process.resident_bytes() - before <= 80 * MIB
    del block
    if exact:
        assert 60 * MIB <= process.peak_resident_bytes() - before <= 80 * MIB
        assert process.reset_peak_resident()
        assert process.peak_resident_bytes() - before <= 16 * MIB
    assert process.available_bytes() > 0


def test_rounds_stop_before_a_deadline(monkeypatch):
    clock = iter(range(0, 1000, 10))  # every look at it takes 10 s: a round, too
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(clock))
    assert list(measure._rounds(5, None)) == [0, 1, 2, 3, 4]
    clock = iter(range(0, 1000, 10))
    assert list(measure._rounds(5, 35)) == [0, 1]  # from 0, 20, 40: each may take 10
    assert list(measure._rounds(5, 0)) == [0]
