"""kqcap run and kqcap plan on whole models: text and ids in and out, memory as planned, logits, exit codes."""

import gc
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from small_models import small

import quant
from quant.models.model import plan_model
from quant.models.planned_file import PlannedFile
from quant.models.synthetic.make_gguf import make_gguf
from tools import process
from tools.cli import main

RUN = ["-c", "96", "-ub", "32", "-t", "2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    make_gguf(path, small("llama-8b"), "F16")
    return str(path)


def run_json(capsys, *argv, code=0):
    assert main(["run", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def fails(capsys, *argv):
    """Bad use: exit code 2 and one line, which is returned."""
    assert main(["run", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kqcap run: error: ") and captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def greedy(path, tokens, n):
    with quant.load(path, n_ctx=96, n_ubatch=32, n_threads=2) as net:
        return list(net.generate(tokens, n, stop=()))


def test_text_in_text_out(capsys, path):
    with quant.load(path, n_ctx=96, n_ubatch=32, n_threads=2) as net:
        ids = net.tokenizer.encode("Once upon a time")
        expected = list(net.generate(ids, 8, stop=()))
        text = net.tokenizer.decode(expected)
    document = run_json(capsys, path, "Once upon a time", "-n", "8", *RUN, "--ignore-eos")
    assert document["prompt_tokens"] == ids and document["tokens"] == expected
    assert document["text"] == text
    assert main(["run", path, "Once upon a time", "-n", "8", *RUN, "--ignore-eos"]) == 0
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    lines = captured.err.splitlines()
    assert lines[1].startswith("memory: weights ") and "compute" in lines[1]
    assert lines[-1].startswith(f"speed: pp {len(ids)} tokens ") and "planned" in lines[-1]


def test_memory_is_what_load_and_plan_say(capsys, path):
    options = dict(n_ctx=96, n_ubatch=32, n_threads=2)
    with quant.load(path, **options) as net:
        memory = net.memory
    document = run_json(capsys, path, "--random", "60", "-n", "4", *RUN)
    assert document["memory"] == memory.to_dict()
    assert document["compute_peak"] <= memory.compute and document["pool_peak"] == memory.pool
    assert document["pp_tokens_per_second"] > 0 and document["tg_tokens_per_second"] > 0
    argv = ["plan", path, "-c", "96", "-ub", "32", "-t", "2", "-amb", "256", "--method", "auto"]
    assert main([*argv, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["compute_bytes"] == memory.compute and row["kv_cache_bytes"] == memory.kv_cache
    assert row["compute"]["scratch"] == memory.scratch
    assert main([*argv, "--vram", "1GiB", "--device", "cpu", "--reserve", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "to the byte" in document["counted"]
    assert document["devices"][0]["compute"] == memory.compute
    assert document["devices"][0]["kv"] == memory.kv_cache


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deepseek-r1", {}),
        ("deepseek-v2-lite", dict(mla_form="fused")),
        ("gemma-3-4b", {}),
        ("gpt-oss-20b", {}),
    ],
)
@pytest.mark.parametrize("mla", ["auto", 1])
def test_a_file_that_is_not_there_is_planned_as_one_that_is(tmp_path, name, sizes, mla):
    """For named geometries: the header alone gives what `load` takes of the file, to the byte."""
    geometry = small(name, **sizes)
    make_gguf(tmp_path / "small.gguf", geometry, "Q8_0")
    options = dict(n_ctx=700, n_ubatch=64, amb="1MiB", kv_type="f16", mla=mla, n_threads=2)
    planned, memory = plan_model(PlannedFile(geometry, "Q8_0"), **options)
    with quant.load(tmp_path / "small.gguf", **options) as net:
        assert net.memory == memory and net.pool.used == memory.pool
        assert planned.choices == net.choices


def test_ids_in_ids_out(capsys, path, tmp_path, monkeypatch):
    tokens = [5, 17, 290, 8, 8, 43]
    expected = greedy(path, tokens, 5)
    file = tmp_path / "ids.txt"
    file.write_text("5, 17 290\n8,8\t43\n")
    argv = ["-n", "5", "--ignore-eos", *RUN]
    assert main(["run", path, "--tokens", str(file), *argv]) == 0
    assert capsys.readouterr().out.split() == [str(token) for token in expected]
    monkeypatch.setattr("sys.stdin", io.StringIO("5 17 290 8 8 43"))
    document = run_json(capsys, path, "--tokens", "-", *argv)
    assert document["tokens"] == expected and document["text"] is None


def test_random_ids_are_seeded(capsys, path):
    first, again, other = (
        run_json(capsys, path, "--random", "9", "-n", "3", "--seed", seed, *RUN)["prompt_tokens"]
        for seed in ("1", "1", "2")
    )
    assert first == again != other and len(first) == 9


def test_logits_of_every_token(capsys, path, tmp_path):
    out = tmp_path / "logits.npy"
    document = run_json(capsys, path, "--random", "40", "--logits", str(out), *RUN)
    assert document["tokens"] == [] and document["pp_tokens_per_second"] > 0
    logits = np.load(out)
    with quant.load(path, n_ctx=96, n_ubatch=32, n_threads=2) as net:
        np.testing.assert_array_equal(
            logits, net.prefill(document["prompt_tokens"], all_logits=True)
        )
    assert list(tmp_path.iterdir()) == [out]  # nothing unfinished is left
    more = run_json(
        capsys, path, "--random", "40", "--logits", str(out), "-n", "3", "--ignore-eos", *RUN
    )
    assert more["tokens"] == greedy(path, document["prompt_tokens"], 3)


def test_a_budget_caps_everything_beside_the_weights(capsys, path):
    free = run_json(capsys, path, "--random", "60", "-n", "2", *RUN)
    needed = free["memory"]["pool"]
    held = run_json(capsys, path, "--random", "60", "-n", "2", "--budget", f"{needed}B", *RUN)
    assert held["pool_peak"] == needed and held["tokens"] == free["tokens"]
    error = fails(capsys, path, "--random", "60", "-n", "2", "--budget", "100KiB", *RUN)
    assert "pool: 102400 bytes" in error and "give a pool of" in error


def test_the_context_holds_what_is_asked_for(capsys, path):
    """Or as much of it as there is room."""
    document = run_json(capsys, path, "--random", "20", "-n", "100", "-c", "32", "-t", "2")
    assert document["n_ctx"] == 32 and len(document["tokens"]) <= 13
    assert "20 behind the 0 there are do not fit n_ctx 16" in main_error(
        capsys, path, "--random", "20", "-n", "1", "-c", "16"
    )


def main_error(capsys, *argv):
    assert main(["run", *argv]) == 2
    return capsys.readouterr().err


def test_an_interrupt_ends_with_the_text_so_far(capsys, path, monkeypatch):
    decode = quant.models.model.Model.decode
    calls = []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*args, **options)

    monkeypatch.setattr(quant.models.model.Model, "decode", interrupted)
    argv = ["--random", "5", "-n", "9", "--ignore-eos", *RUN]
    document = run_json(capsys, path, *argv, code=130)
    assert document["interrupted"] and len(document["tokens"]) == 3


def test_a_broken_promise_is_exit_code_1(capsys, path, monkeypatch):
    monkeypatch.setattr(
        quant.models.model.Model, "compute_peak", property(lambda net: net.memory.compute + 1)
    )
    document = run_json(capsys, path, "--random", "5", "-n", "1", *RUN, code=1)
    assert "is over the plan's" in document["broken"][0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of PROMPT, --tokens, --random; got none"),
        (["text", "--random", "4"], "got PROMPT and --random"),
        (["--random", "4", "--chat"], "--chat: for a text"),
        (["text", "--system", "be brief"], "--system: for --chat"),
        (["text", "--chat"], "chat_template"),
        (["text", "--temp", "-1"], "temperature"),
        (["text", "--top-p", "2"], "top_p"),
        (["text", "--device", "cuda:0"], "device"),
        (["--tokens", "no-such-file.txt"], "no-such-file.txt: No such file"),
        (["text", "-ctk", "q8_0", "--random", "4"], "one of PROMPT"),
    ],
)
def test_bad_use_is_one_clear_line(capsys, path, argv, message):
    assert message in fails(capsys, path, *argv)


def test_bad_ids_and_files(capsys, path, tmp_path):
    file = tmp_path / "ids.txt"
    for text, message in (("", "no token ids"), ("5 x7", "'x7' is no token id")):
        file.write_text(text)
        assert message in fails(capsys, path, "--tokens", str(file))
    file.write_text("4 300")
    assert "ids are 0 to 299; got 300" in main_error(capsys, path, "--tokens", str(file))
    assert "not a GGUF file" in fails(capsys, str(file), "--random", "4")
    make_gguf(tmp_path / "part.gguf", small("llama-8b"), "F16", only_attention=True)
    assert "token_embd" in fails(capsys, str(tmp_path / "part.gguf"), "--random", "4")


def test_a_prompt_may_stand_anywhere(capsys, path):
    ways = ([path, "ab", "-n", "2"], [path, "-n", "2", "ab"], ["-n", "2", path, "ab"])
    documents = [run_json(capsys, *way, "--ignore-eos", *RUN) for way in ways]
    assert documents[0]["tokens"] == documents[1]["tokens"] == documents[2]["tokens"]
    assert "chat_template" in fails(capsys, path, "--chat", "a text behind an option")
    with pytest.raises(SystemExit):
        main(["run", path, "one", "-n", "1", "two"])
    assert "unrecognized arguments: two" in capsys.readouterr().err


def test_a_context_beyond_the_models_is_said(capsys, path):
    assert (
        main(["run", path, "--random", "4", "-n", "1", "-c", "200000", "-ub", "32", "-ctk", "q8_0"])
        == 0
    )
    assert "beyond the model's context" in capsys.readouterr().err


def fill_caches(net):
    """Rows that were never written are no memory yet."""
    for _, cache in net._caches():
        for array in cache._arrays:
            array.fill(0)


def test_a_closed_model_gives_its_memory_back_at_once(path):
    """Not when Python next looks for circles."""
    if process.anonymous_bytes() is None:
        pytest.skip("no /proc/self/status here")
    gc.disable()
    try:
        with quant.load(path, n_ctx=2**17, n_ubatch=32) as net:
            net.prefill([1, 2, 3])
            size = net.memory.kv_cache
            fill_caches(net)
            loaded = process.anonymous_bytes()
        assert size > 60 * 2**20
        assert loaded - process.anonymous_bytes() > 0.9 * size
    finally:
        gc.enable()


def test_the_readmes_block_runs(capsys, tmp_path, monkeypatch):
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "quant.load(" in block]
    make_gguf(tmp_path / "model.gguf", small("llama-8b"), "F16")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert "kv_cache" in capsys.readouterr().out


def test_python_m_tools_run(path):
    command = [sys.executable, "-m", "tools", "run", path, "--random", "3", "-n", "2", *RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) <= 2 and "speed: pp 3 tokens" in done.stderr
