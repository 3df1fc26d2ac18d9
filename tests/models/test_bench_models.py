"""kqcap bench on whole models, tiny: rows and their memory, lists, budgets, other engines by stand-ins, exit codes."""

import contextlib
import json
import os
import re

import pytest
from small_models import small

import quant
from quant.models.model import Model
from quant.models.synthetic.make_gguf import make_gguf
from tools.bench import default_model, model_command, model_peers, model_versus
from tools.bench.model_cases import BenchTest, Setting, bench_tests, cases_of
from tools.bench.model_peers.llama_api import last_words, said
from tools.bench.peers.handle import PeerError, PeerMissing
from tools.cli import main

MIB = 2**20
TINY = ["-p", "96", "-n", "0", "-ub", "32", "-r", "1", "-t", "2"]


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "latent.gguf"
    make_gguf(path, small("deepseek-v2-lite"), "IQ4_NL")
    return str(path)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "windowed.gguf"
    make_gguf(path, small("gemma-3-4b", window=24), "Q8_0")
    return str(path)


def bench(capsys, *argv, code=0):
    assert main(["bench", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_rows_say_what_was_planned_and_used(capsys, latent):
    document = bench(capsys, latent, *TINY, "-n", "3", "-d", "0,20", "-amb", "0,1")
    assert document["architecture"] == "deepseek2" and document["n_layer"] == 2
    rows = document["rows"]
    assert [row["test"] for row in rows] == ["pp96", "tg3", "pp96 @ d20", "tg3 @ d20"]
    for row in rows:
        assert row["ambs"] == [0, 1]  # a budget that changes nothing: one run for both
        assert row["broken"] == [] and len(row["seconds"]) == 1 and row["spread"] is None
        assert row["tokens_per_second"] > 0
        assert 0 < row["compute_used"] <= row["compute_planned"]
        with quant.load(latent, n_ctx=row["n_ctx"], n_ubatch=32, amb="1MiB", n_threads=2) as net:
            assert row["memory"] == net.memory.to_dict()


def test_every_kind_of_list(capsys, latent):
    rows = bench(
        capsys, latent, "-p", "40", "-n", "0", "-ub", "16,32", "-amb", "1", "-mla", "0,1", "-t", "1",
        "--method", "auto,steps", "-r", "1",
    )["rows"]  # fmt: skip
    keys = ("n_ubatch", "mla", "method")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows) == 8
    planned = {(row["method"], row["n_ubatch"]): row["compute_planned"] for row in rows}
    assert planned["auto", 16] < planned["auto", 32]


def test_steps_take_less_by_a_smaller_amb(capsys, latent):
    argv = [
        latent,
        "-p",
        "1024",
        "-n",
        "0",
        "-ub",
        "512",
        "-r",
        "1",
        "-t",
        "2",
        "--method",
        "steps",
    ]
    free, capped = bench(capsys, *argv, "-amb", "0,4")["rows"]
    kq = 512 * 1024 * 4  # of one head
    assert free["memory"]["scratch"] >= 3 * kq and kq <= capped["memory"]["scratch"] <= 4 * MIB
    assert capped["compute_used"] < free["compute_used"]


def test_a_row_that_cannot_run_says_what_it_would_need(capsys, latent):
    argv = [latent, "-p", "1024", "-n", "0", "-ub", "512", "-r", "1", "--method", "steps"]
    rows = bench(capsys, *argv, "-amb", "1,4")["rows"]
    assert [bool(row["cannot_run"]) for row in rows] == [True, False]
    needed = re.search(r"amb: 1.00 MiB are too few .* at least (\d+) bytes", rows[0]["cannot_run"])
    with quant.load(latent, n_ctx=1024, n_ubatch=512, amb=int(needed[1]), method="steps") as net:
        assert net.memory.compute > 0
    assert main(["bench", *argv, "-amb", "1"]) == 2  # the only one: bad use
    assert "are too few for the smallest tile" in capsys.readouterr().err


def test_the_table_grows_row_by_row(capsys, windowed, monkeypatch):
    """A windowed model goes back to its depth between runs, even where its window has let rows go."""
    argv = ["bench", windowed, "-p", "64", "-n", "2", "-d", "40", "-ub", "16", "-r", "3", "-t", "2"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 and len({len(line) for line in lines}) == 1
    assert "compute planned" in lines[0] and "pp64 @ d40" in lines[2] and "±" in lines[3]
    assert "type_kv f16" in out and "gemma3, 7 layers" in out


def test_an_interrupt_keeps_what_is_measured(capsys, latent, monkeypatch):
    run_case, calls = model_command.run_case, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_case(*args, **options)

    monkeypatch.setattr(model_command, "run_case", interrupted)
    document = bench(capsys, latent, *TINY, "-p", "32,40,50", code=130)
    assert document["interrupted"] and len(document["rows"]) == 1


def test_a_broken_plan_is_exit_code_1(capsys, latent, monkeypatch):
    monkeypatch.setattr(Model, "compute_peak", property(lambda net: net.memory.compute + 1))
    (row,) = bench(capsys, latent, *TINY, code=1)["rows"]
    assert "is over the plan's" in row["broken"][0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-p", "0", "-n", "0"], "nothing to run"),
        (["-p", "64", "-n", "0", "--only", "tg"], "no case has 'tg' in its name; there are: pp64"),
        (["--layer", "1"], "--full and --layer belong to --attention"),
        (["--vs", "torch"], "of models there are ik, ggml"),
        (["--vs", "ik", "--method", "steps"], "--method: --vs runs our best"),
        (["--attention", "-n", "4"], "-n: for whole models"),
        (["--attention", "-ctk", "q4_0"], "--attention has f32, f16, q8_0"),
    ],
)
def test_bad_use(capsys, latent, argv, message):
    assert main(["bench", latent, *argv]) == 2
    assert message in capsys.readouterr().err


def test_one_model(capsys, latent):
    assert main(["bench", latent, "-m", latent]) == 2
    assert "MODEL, -m: one model" in capsys.readouterr().err
    assert main(["bench", "--vs", "ik"]) == 2
    assert "--vs ik: for a model" in capsys.readouterr().err


def test_without_a_model_it_is_the_small_file(capsys, latent, monkeypatch):
    """The source's tables: the steps of ik_llama.cpp, then the best tiles, against amb."""
    monkeypatch.setattr(default_model, "path", lambda progress, file: latent)
    small_defaults = {**model_command.SMALL_DEFAULTS, "n_prompt": [64], "attn_max_batch": [0, 1]}
    monkeypatch.setattr(model_command, "SMALL_DEFAULTS", small_defaults)
    monkeypatch.setattr(model_command, "SMALL_SECONDS", 0)
    rows = bench(capsys)["rows"]
    assert [row["method"] for row in rows] == ["steps", "auto"]
    assert all(row["n_prompt"] == 64 and len(row["seconds"]) == 1 for row in rows)


def test_the_small_file_is_whole():
    """27 layers, by which others know the model; its rows take what they say without being made."""
    from quant.models.named_geometries import named_geometry
    from quant.models.planned_file import PlannedFile
    from quant.models.synthetic.load_elsewhere import load_failures

    geometry = named_geometry(default_model.GEOMETRY).resized(**default_model.WHOLE.sizes)
    assert geometry.n_layer == 27 and not load_failures(geometry)
    file = PlannedFile(geometry, default_model.QTYPE)
    assert file.n_bytes < 80 * MIB
    tests = bench_tests([2048], [], [0])
    settings = [
        Setting(2048, "f16", "auto", 2, method, amb)
        for method in ("steps", "auto")
        for amb in (0, 32, 64, 128)
    ]
    cases = cases_of(file, tests, settings)
    assert [case.ambs for case in cases] == [(0,), (32,), (64,), (128,), (0, 32, 64, 128)]
    planned = [case.memory.compute for case in cases]
    assert planned[1] < planned[2] < planned[3] < planned[0] and planned[4] < planned[1]


def test_passes_of_tests():
    assert list(BenchTest(100, 0, 7).passes(64)) == [(64, 0, 71), (36, 1, 107)]
    assert list(BenchTest(0, 2, 7).passes(64)) == [(1, 1, 8), (1, 1, 9)]
    assert BenchTest(100, 0, 7).n_ctx == 107 and BenchTest(0, 2, 0).name == "tg2"


# ---------------------------------------------------------------- other engines


class StandIn:
    """An engine that takes twice our time, or dies when it is asked to run."""

    def __init__(self, name, n_threads, package, install):
        self.name, self.about = name, {name: "1.0"}
        self.ran = []
        if name == "ggml":
            raise PeerMissing(f"ggml: not installed; {install[name]} (No module)")

    def ask(self, do, progress, **arguments):
        if do == "load":
            job = model_peers.Job(**arguments["job"])
            assert job.n_ctx >= 96 and job.kv_type == "f16"
            return dict(info=dict(compute_bytes=3 * MIB if self.name == "ik" else 2 * MIB))
        if do == "run":
            self.ran.append(BenchTest(*(arguments[field] for field in BenchTest._fields)).name)
            progress(1, 1)
            if arguments["n_gen"] and self.name == "ik":
                raise PeerError("ik: its process ended with code -11: ")
            return dict(seconds=0.5 if self.name == "ours" else 1.0)
        return {}

    def close(self):
        pass


def test_against_others(capsys, latent, monkeypatch):
    monkeypatch.setattr(model_versus, "Peer", StandIn)
    argv = [latent, "-p", "96", "-n", "96", "-t", "2", "-r", "3", "--vs", "ik,ggml"]
    document = bench(capsys, *argv, code=2)  # one that was asked for is not there
    assert document["missing"] == ["ggml: not installed; pip install llama-cpp-py-sync (No module)"]
    prompt, token = document["rows"]
    assert prompt["ratios"]["ik"] == dict(median=2.0, least=2.0, most=2.0, n_rounds=3)
    assert prompt["tokens_per_second"] == {"ours": 192.0, "ik": 96.0}
    assert prompt["compute_bytes"] == {"ours": 2 * MIB, "ik": 3 * MIB}
    # an engine that dies is a note, and the others go on
    assert token["ratios"] == {} and len(token["seconds"]["ours"]) == 3
    assert token["notes"] == ["ik: its process ended with code -11: "]
    assert main(["bench", *argv]) == 2
    out = capsys.readouterr().out
    assert "2.00 (2.00-2.00)" in out and "pip install llama-cpp-py-sync" in out


def test_other_engines_are_warmed_up_by_a_short_prompt(capsys, latent, monkeypatch):
    """A whole one would take as long as the run that is timed; bars say whose turn it is, and at what."""
    peers, bars = {}, []

    class Kept(StandIn):
        def __init__(self, name, *args):
            super().__init__(name, *args)
            peers[name] = self

    @contextlib.contextmanager
    def bar(text):
        bars.append(text)
        yield lambda done, total: None

    monkeypatch.setattr(model_versus, "Peer", Kept)
    monkeypatch.setattr(model_versus, "token_bar", bar)
    argv = [latent, "-p", "4096,96", "-n", "100", "-d", "7", "-ub", "2048", "-t", "2", "-r", "1"]
    bench(capsys, *argv, "--vs", "ik")
    warm_up_and_run = [("pp512", "pp4096"), ("pp96", "pp96"), ("tg1", "tg100")]
    expected = [f"{name} @ d7" for pair in warm_up_and_run for name in pair]
    assert peers["ours"].ran == expected and peers["ik"].ran == expected[:-1]  # where it dies
    assert "pp4096 @ d7, ik: warming up" in bars and "pp4096 @ d7, ours: run 1 of 1" in bars


@pytest.mark.parametrize("engine", ["ours", "ik", "ggml"])
def test_engines_run_a_file_in_a_process_of_their_own(tmp_path, engine):
    """Each for real: a prompt in u-batches, tokens behind it, back to a depth, and a file that is none."""
    from tools.bench.peers.handle import Peer

    path = tmp_path / "small.gguf"
    make_gguf(path, small("qwen2-7b"), "Q8_0")
    try:
        peer = Peer(engine, 1, model_peers.__name__, model_peers.INSTALL)
    except PeerMissing as error:
        pytest.skip(f"NOT CHECKED: {error}")
    try:
        job = model_peers.Job(str(path), 100, 32, 1, "f16", "auto", 1)
        info = peer.ask("load", job=job._asdict())["info"]
        assert info["compute_bytes"] > 0
        told = []
        for n_prompt, n_gen, depth in ((70, 0, 0), (40, 0, 20), (0, 3, 20), (70, 0, 0)):
            told.clear()
            test = dict(n_prompt=n_prompt, n_gen=n_gen, depth=depth)
            reply = peer.ask("run", lambda *now: told.append(now), **test, seed=0, n_vocab=300)
            assert reply["seconds"] > 0
            # by u-batches, or token by token
            steps = [*range(32, n_prompt, 32), n_prompt] if n_prompt else [1, 2, 3]
            timed = told[-len(steps) :]
            assert timed == [(done, n_prompt or n_gen) for done in steps]
        (tmp_path / "none.gguf").write_bytes(b"no model, but long enough to look into it")
        with pytest.raises(PeerError, match=engine):
            peer.ask("load", job=job._replace(path=str(tmp_path / "none.gguf"))._asdict())
        assert peer.is_alive
    finally:
        peer.close()


def test_what_libraries_say_is_kept(capfd):
    with said() as lines:
        os.write(2, b"CPU compute buffer size =   2.50 MiB\n....\nready\n")
        assert "2.50" in lines()
    assert "ready" in capfd.readouterr().err  # and still written
    assert last_words("a\n b \n...\n\n") == "a; b"
