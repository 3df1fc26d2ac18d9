"""The kqcap command through main([...]): plans, exit codes, messages."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tools.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_json(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *argv):
    """Bad use: exit code 2 and one line on standard error, which is returned."""
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kqcap {argv[0]}: error: ") and error.count("\n") == 1
    return error


def refused(capsys, *argv):
    """Refused by argparse: exit code 2; returns the message."""
    with pytest.raises(SystemExit) as exit_:
        main(list(argv))
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_plan_without_arguments_is_the_pull_requests_examples(capsys):
    rows = run_json(capsys, "plan")["rows"]
    steps = {row["n_kv"]: row for row in rows if row["method"] == "steps"}
    assert [steps[n]["plan"]["n_steps"] for n in (8192, 16000, 24000, 163000)] == [1, 2, 3, 22]
    assert [steps[n]["ik"]["n_steps"] for n in (8192, 16000, 24000, 163000)] == [1, 2, 3, 20]
    assert steps[8192]["plan"]["kq_bytes"] == 2**31
    assert steps[163000]["plan"]["heads"] == 6 and steps[163000]["ik"]["heads"] == 7
    assert steps[163000]["ik"]["overshoot_bytes"] == 7 * 163000 * 512 * 4 - 2**31
    assert all(row["plan"]["scratch_bytes"] <= 2**31 for row in rows)
    assert {row["method"] for row in rows} == {"auto", "steps"}


def test_plan_of_one_token_is_one_step(capsys):
    (row,) = run_json(capsys, "plan", "-c", "163000", "-ub", "1", "--method", "steps")["rows"]
    assert row["plan"]["n_steps"] == row["ik"]["n_steps"] == 1
    assert row["ik"]["kq_mib"] == 79


def test_plan_lists_and_repeated_options(capsys):
    rows = run_json(
        capsys, "plan", "-c", "1024,4096", "-ub", "128", "-ub", "512", "-amb", "0,64",
        "--kv-type", "f16,q8_0", "-t", "1,3", "--heads", "32", "--heads-kv", "8", "--d-k", "128",
    )["rows"]  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 2 * 2 * 2
    assert {row["plan"]["k_dtype"] for row in rows} == {"float16", "Q8_0"}
    assert {row["plan"]["n_head_kv"] for row in rows} == {8}
    assert {(row["n_threads"], row["plan"]["n_threads"]) for row in rows} == {(1, 1), (3, 3)}
    capped = [row for row in rows if row["amb_mib"] == 64 and row["n_kv"] * row["n_ubatch"] > 2**20]
    assert {row["ik"]["reason"] for row in capped} == {"grouped K/V heads are never split"}
    assert all(row["plan"]["scratch_bytes"] <= 64 * 2**20 for row in capped)


def test_plan_says_what_one_head_would_need(capsys):
    argv = ["plan", "-c", "163840", "-ub", "2048", "-amb", "256"]
    rows = {row["method"]: row for row in run_json(capsys, *argv)["rows"]}
    assert rows["steps"]["plan"] is None
    assert rows["steps"]["needs_bytes"] == 163840 * 2048 * 4
    assert rows["auto"]["plan"]["scratch_bytes"] <= 256 * 2**20
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "needs 1280.00" in out and "cannot run: " in out
    # nothing that can run: bad use
    assert "1342177280 bytes" in fails(capsys, *argv, "--method", "steps")


def test_plan_table(capsys):
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 and len({len(line) for line in lines}) == 1
    assert "6 x 512 x 163000" in out and "180.52" in out  # what 7 heads are over 2 GiB


def test_ik_path_can_be_chosen(capsys):
    argv = ["plan", "-c", "163840", "--heads-kv", "1", "--d-k", "576", "--d-v", "512"]
    (row, _) = run_json(capsys, *argv)["rows"]
    assert row["ik"]["n_steps"] == 1
    (row, _) = run_json(capsys, *argv, "--ik-path", "mla")["rows"]
    assert row["ik"]["n_steps"] == 20
    (row, _) = run_json(capsys, *argv, "--ik-path", "mla", "--sinks")["rows"]
    assert row["ik"]["n_steps"] == 20


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["plan", "-amb", "12,x"], "'x' is not a whole number"),
        (["plan", "-amb", "-1"], "-1 is below 0"),
        (["plan", "-amb", "268435456"], "268435456 is above 4194304: it is MiB"),
        (["plan", "-c", "99999999999"], "99999999999 is above 2147483647"),
        (["plan", "llama-8b", "--vram", "24"], "24 MiB is less than any device has; write 24GiB"),
        (["plan", "llama-8b", "--vram", "24GiG"], "write MiB (24576), 24GiB, 24G or 24GB"),
        (["plan", "-ub", "0"], "0 is below 1"),
        (["plan", "--method", "best"], "'best' is not one of auto, steps"),
        (["bench", "--kv-type", "f64"], "'f64' is not one of f32, f16, bf16, "),
        (["bench", "-r", "1,2"], "one number"),
        (["bench", "-r", "0"], "0 is below 1"),
    ],
)
def test_malformed_command_lines(capsys, argv, message):
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize("command", ["plan", "bench"])
def test_bad_model_files_are_one_clear_line(capsys, tmp_path, command):
    missing = str(tmp_path / "no such file.gguf")
    assert missing in fails(capsys, command, "-m", missing)
    text = tmp_path / "notes.gguf"
    text.write_text("not a model, but long enough to look into")
    assert str(text) in fails(capsys, command, "-m", str(text))
    assert str(tmp_path) in fails(capsys, command, "-m", str(tmp_path))


def test_sizes_and_model_exclude_each_other(capsys):
    assert "--heads-kv" in fails(capsys, "plan", "-m", "x.gguf", "--heads-kv", "4")


@pytest.mark.parametrize(
    "name, sizes, path",
    [
        ("deepseek-r1", (128, 128, 192, 128), "mla"),
        ("deepseek-v2-lite", (16, 16, 192, 128), "mla"),
        ("llama-8b", (32, 8, 128, 128), "standard"),
    ],
)
def test_plan_of_a_named_geometry(capsys, monkeypatch, tmp_path, name, sizes, path):
    monkeypatch.chdir(tmp_path)
    for argv in (["plan", name], ["plan", "-m", name]):
        geometry = run_json(capsys, *argv, "-p", "16384")["geometry"]
        assert tuple(geometry[key] for key in ("n_head", "n_head_kv", "d_k", "d_v")) == sizes
        assert geometry["ik_path"] == path
    (tmp_path / name).write_text("a file of that name goes first, and this one is no model")
    assert "not a GGUF file" in fails(capsys, "plan", name)


def test_sizes_that_make_no_sense_are_named(capsys):
    assert "n_head_kv" in fails(capsys, "plan", "--heads", "20", "--heads-kv", "3")
    assert "--heads: 0 is below 1" in refused(capsys, "plan", "--heads", "0")


def test_version_and_help(capsys):
    for argv in (
        ["--version"],
        ["--help"],
        ["plan", "--help"],
        ["bench", "--help"],
        ["run", "--help"],
        ["make-gguf", "--help"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith("kqcap 0." if argv == ["--version"] else "usage: kqcap")


def test_python_m_tools_from_a_checkout():
    command = [sys.executable, "-m", "tools", "plan", "-c", "163000", "--method", "steps", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"][0]["plan"]["n_steps"] == 22


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tools", "plan", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and done.stderr == ""
