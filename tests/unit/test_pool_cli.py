"""``kqcap pool`` through main([...]): answers, exit codes, and that it writes where it was told to and nowhere else."""

import io
import json
import os
import pathlib
import pickle
import random
import secrets
import subprocess
import sys

import numpy as np
import pytest
from traces import Lines, mutant, record

import lowlevel
from lowlevel.extras import pip_install
from lowlevel.pool.trace import Trace
from tools.cli import main
from tools.pool.common import shown

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def said(tmp_path):
    """What the pool says of the trace in run.jsonl; its snapshot is in snapshot.json."""
    said = record(tmp_path / "run.jsonl", random.Random(4))
    (tmp_path / "snapshot.json").write_text(json.dumps(said["snapshot"], indent=2))
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    return {
        **said,
        # of an event, not half of the seconds: on a busy machine the pool may come later than that
        "halfway": json.loads(lines[len(lines) // 2])["t"],
        "path": str(tmp_path / "run.jsonl"),
        "snapshot_path": str(tmp_path / "snapshot.json"),
    }


def run(capsys, *argv, code=0):
    assert main(["pool", *argv]) == code
    return capsys.readouterr().out


def run_json(capsys, *argv, code=0):
    return json.loads(run(capsys, *argv, "--json", code=code))


def fails(capsys, *argv):
    assert main(["pool", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kqcap pool: error: ") and error.count("\n") == 1
    return error


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_stats(capsys, said):
    document = run_json(capsys, "stats", said["path"])
    (pool,) = document["pools"]
    assert (pool["peak"], pool["n_refused"], pool["used"]) == (
        said["peak"], said["n_refused"], said["snapshot"]["used"],
    )  # fmt: skip
    assert document["stopped"] and document["trace"]["pid"] == os.getpid()
    out = run(capsys, "stats", said["path"])
    assert f"peak {said['peak']} B" in out and "as planned" in out
    (pool,) = run_json(capsys, "stats", said["snapshot_path"])["pools"]
    assert pool["peak"] == said["peak"]
    assert pool["peak_t"] is None  # a snapshot has no times
    out = run(capsys, "stats", said["snapshot_path"])
    assert f"peak {said['peak']} B" in out and " s, used at the end" not in out


def test_map(capsys, said):
    document = run_json(capsys, "map", said["path"], "--at", "end")
    blocks = [{k: v for k, v in b.items() if k != "t"} for b in document["pools"][0]["blocks"]]
    assert blocks == said["snapshot"]["live"]
    document = run_json(capsys, "map", said["path"])
    assert sum(b["n_bytes"] for b in document["pools"][0]["blocks"]) == said["peak"]
    half = said["halfway"]
    (pool,) = run_json(capsys, "map", said["path"], f"--at={half}")["pools"]
    assert all(b["t"] is None or b["t"] <= half for b in pool["blocks"])
    out = run(capsys, "map", said["path"], "--width", "40", "--rows", "4", "--whole")
    rows = [line[15:] for line in out.splitlines() if line[:14].strip().replace(",", "").isdigit()]
    assert len(rows) <= 4 and all(len(row) == 40 for row in rows[:-1]) and "A" in "".join(rows)
    for when in ("soon", "-1", "nan"):
        assert "--at" in fails(capsys, "map", said["path"], f"--at={when}")
    assert "has no times" in fails(capsys, "map", said["snapshot_path"], "--at", "0.1")
    (pool,) = run_json(capsys, "map", said["snapshot_path"])["pools"]
    assert all(block["t"] is None for block in pool["blocks"])
    assert " s)" not in run(capsys, "map", said["snapshot_path"])
    assert "--pool 7" in fails(capsys, "map", said["path"], "--pool", "7")


def test_check(capsys, said):
    peak = said["peak"]
    assert "held" in run(capsys, "check", said["path"], "--max", str(peak), "--plan")
    out = run(
        capsys, "check", said["path"], "--max", str(peak - 1), "--no-refusals", "--no-leaks", code=1
    )
    assert out.count("BROKEN") == 3 and "1 over the limit" in out
    document = run_json(capsys, "check", said["path"], "--max", "1KiB", code=1)
    assert document["peaks"] == {"cpu": peak} and not document["held"]
    assert run_json(capsys, "check", said["snapshot_path"], "--max", "64KiB")["held"]
    assert "name what to check" in fails(capsys, "check", said["path"])
    with pytest.raises(SystemExit):
        main(["pool", "check", said["path"], "--max", "lots"])


def test_a_plan_that_was_not_kept(capsys, tmp_path):
    lines = Lines()
    lines.add("begin", call=1, name="attention", thread="main", details={"scratch_bytes": 512})
    lines.alloc(1, 0, 256).free(1, 0, 256)
    lines.add("end", call=1, name="attention", thread="main", ok=True)
    path = str(lines.write(tmp_path / "t"))
    assert "256 bytes, planned 512" in run(capsys, "check", path, "--plan", code=1)


def test_diff(capsys, said):
    (pair,) = run_json(capsys, "diff", said["path"], said["path"])["pools"]
    assert pair["totals"]["peak"] == [said["peak"]] * 2
    assert all(a == b for a, b in pair["tags"].values())
    assert "+0" in run(capsys, "diff", said["path"], said["snapshot_path"], "--max-growth", "0")


def test_growth_breaks_a_diff(capsys, tmp_path):
    a = str(Lines().alloc(1, 0, 512).write(tmp_path / "a"))
    b = str(Lines().alloc(1, 0, 768).write(tmp_path / "b"))
    run(capsys, "diff", a, b, "--max-growth", "256")
    assert "grew by 256" in run(capsys, "diff", a, b, "--max-growth", "255", code=1)
    run(capsys, "diff", b, a, "--max-growth", "0")


def test_replay(capsys, said):
    document = run_json(
        capsys, "replay", said["path"], "--budget", "1KiB,1GiB", "--policy", "best-fit,buddy",
        "--smallest", code=1,
    )  # fmt: skip
    fits = {(r["policy"], r["budget"]): r["fits"] for r in document["replays"]}
    assert fits == {(p, b): b == 2**30 for p in ("best-fit", "buddy") for b in (1024, 2**30)}
    smallest = document["replays"][0]["smallest"]
    assert said["peak"] <= smallest
    run(capsys, "replay", said["path"], "--budget", str(smallest))
    if said["n_refused"]:  # in its own budget it was refused
        assert "answers hold up to there" in run(capsys, "replay", said["path"], code=1)
    assert "NO" in run(capsys, "replay", said["path"], "--budget", "1KiB", code=1)
    assert "a snapshot" in fails(capsys, "replay", said["snapshot_path"])


def test_a_replay_of_a_refused_run_says_what_cannot_be_known(capsys, tmp_path):
    lines = Lines(budget=1024).alloc(1, 0, 512)
    path = str(lines.add("refuse", size=768, tag="kq", error={}).write(tmp_path / "t"))
    out = run(capsys, "replay", path, code=1)
    assert "NO" in out and "the program took nothing more" in out
    out = run(capsys, "replay", path, "--budget", "1280", "--smallest")
    assert "yes, to 0.003000 s" in out and out.count("1280 B") == 3
    (result,) = run_json(capsys, "replay", path, "--budget", "1280")["replays"]
    assert result["unknown"]["since"] == result["known_until"] == 0.003
    assert "1 request(s) were refused" in run(capsys, "check", path, "--max", "1KiB")
    assert "FILE2 had refusals" in run(capsys, "diff", path, path)


def test_export_as_json(capsys, said, tmp_path):
    before = files_of(tmp_path)
    rows = run_json(capsys, "export", said["path"], "--format", "rmm")
    assert sum(row["Action"] == "allocate" for row in rows) >= said["n_taken"] - 5
    document = run_json(capsys, "export", said["path"], "--format", "torch")
    assert document["segments"][0]["allocated_size"] == said["snapshot"]["used"]
    assert files_of(tmp_path) == before


def test_exports_and_pictures_go_where_they_are_told(capsys, said, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    before = files_of(tmp_path)
    run(capsys, "export", said["path"], "--format", "torch", "-o", str(out / "a.pickle"))
    run(capsys, "export", said["path"], "--format", "rmm", "-o", str(out / "a.csv"))
    run(capsys, "timeline", said["path"], "-o", str(out / "a.html"), "-o", str(out / "a.png"))
    new = [f"out/a.{suffix}" for suffix in ("csv", "html", "pickle", "png")]
    assert files_of(tmp_path) == sorted(before + new)
    assert pickle.loads((out / "a.pickle").read_bytes())["segments"]
    run(capsys, "timeline", said["path"])
    run(capsys, "export", said["path"], "--format", "rmm")
    assert files_of(tmp_path) == sorted(before + new + ["run.jsonl.csv", "run.jsonl.html"])
    document = run_json(capsys, "timeline", said["path"])
    assert document["pools"][0]["peak"] == said["peak"]


def test_a_png_without_matplotlib_writes_nothing(capsys, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends", None)
    before = files_of(tmp_path)
    outputs = ["-o", str(tmp_path / "a.html"), "-o", str(tmp_path / "a.png")]
    assert pip_install("plot") in fails(capsys, "timeline", said["path"], *outputs)
    assert files_of(tmp_path) == before


def test_stats_by_line_and_scope_and_what_was_never_freed(capsys, tmp_path):
    path = tmp_path / "t.jsonl"
    said = record(path, random.Random(4), debug=True)
    (pool,) = run_json(capsys, "stats", str(path))["pools"]
    assert sum(group["n_bytes"] for group in pool["left"]) == said["snapshot"]["used"]
    assert {group["since"] is None for group in pool["left"] if group["tag"] == "early"} == {True}
    for kind in ("tags", "scopes", "sites"):
        assert sum(totals["used"] for totals in pool[kind].values()) == said["snapshot"]["used"]
    out = run(capsys, "stats", str(path))
    assert "| source line" in out and "| layer 0/x" in out and "record < test_pool_cli.py:" in out
    assert f"never freed: {pool['n_live']} block(s), {said['snapshot']['used']} B" in out
    out = run(capsys, "check", str(path), "--no-leaks", code=1)
    assert "(taken at traces.py:" in out
    Lines().alloc(1, 0, 256).write(path)
    out = run(capsys, "stats", str(path))
    assert "live now: 1 block(s)" in out and "source line" not in out


def test_nothing_is_replaced_unasked(capsys, said, tmp_path):
    target = tmp_path / "a.html"
    target.write_text("mine")
    before = files_of(tmp_path)
    for argv, message in (
        (["-o", str(target)], "exists"),
        (["-o", str(tmp_path / "new.html"), "-o", str(target)], "exists"),
        (["-o", said["path"]], "html or .png"),
        (["-o", str(tmp_path / "a.gif")], "html or .png"),
        (["-o", str(tmp_path / "no" / "a.html")], "a folder that exists"),
        (["-o", str(tmp_path)], "html or .png"),
    ):
        assert message in fails(capsys, "timeline", said["path"], *argv)
    assert "is the file that is read" in fails(
        capsys, "export", said["path"], "--format", "rmm", "-o", said["path"], "--force"
    )
    assert files_of(tmp_path) == before and target.read_text() == "mine"
    run(capsys, "timeline", said["path"], "-o", str(target), "--force")
    assert target.read_text().startswith("<!doctype html>")


def test_damaged_files_write_nothing(capsys, said, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(path.read_bytes()[:-200] + b"\n{]\n")
    before = files_of(tmp_path)
    for argv in (
        ["stats"], ["map"], ["timeline"], ["top"], ["diff", said["snapshot_path"]], ["replay"],
        ["check", "--max", "1"], ["export", "--format", "torch"], ["export", "--format", "rmm"],
    ):  # fmt: skip
        assert f"{path}, line" in fails(capsys, argv[0], str(path), *argv[1:])
    assert files_of(tmp_path) == before
    assert "No such file" in fails(capsys, "stats", str(tmp_path / "missing"))


def test_mutants_end_in_one_line_or_an_answer(capsys, tmp_path):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    record(tmp_path / "good", rng, n_steps=12, budget="8KiB")
    good, path = (tmp_path / "good").read_bytes(), str(tmp_path / "mutant")
    codes = set()
    for _ in range(200):
        pathlib.Path(path).write_bytes(mutant(rng, good))
        for argv in (["stats", path], ["map", path], ["top", path], ["replay", path], ["diff", path, path],
                     ["check", path, "--max", "1KiB"]):  # fmt: skip
            code = main(["pool", *argv])
            out, error = capsys.readouterr()
            codes.add(code)
            assert error.count("\n") == (code == 2) and "\x1b" not in out + error
    assert codes == {0, 1, 2}
    assert files_of(tmp_path) == ["good", "mutant"]


def test_names_out_of_a_file_cannot_speak_to_the_terminal(capsys, tmp_path):
    tags = [
        "\x1b[2J\x1b]0;x\x07",
        "[/bold red]",
        "[link=http://x]y[/link]",
        "\ud800",
        "a\nb",
        "x" * 500,
        "",
    ]
    lines = Lines(program="\x1b[31m")
    for n, tag in enumerate(tags, start=1):
        lines.alloc(n, 1024 * n, 256, tag, thread=tag)
    lines.add("begin", call=1, name=tags[0], thread=tags[1], details={})
    lines.add("refuse", size=512, tag=tags[0], error={})
    path = str(lines.write(tmp_path / "t"))
    for argv in (
        ["stats", path], ["map", path], ["top", "--once", path], ["diff", path, path],
        ["replay", path, "--budget", "256"], ["check", path, "--no-refusals", "--no-leaks", "--max", "1"],
    ):  # fmt: skip
        assert main(["pool", *argv]) in (0, 1)
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\x07" not in out and "x" * 100 not in out
        out.encode()
    assert shown(tags[0]) == "\\x1b[2J\\x1b]0;x\\x07"


def test_top_of_what_is_still_running(capsys, tmp_path):
    path = tmp_path / "t.jsonl"
    with lowlevel.Pool("1MiB") as pool, Trace(path) as trace, pool.scope("s"):
        trace.attach(pool)
        with pool.call("prefill", n=1):
            pool.empty(1000, tag="kq")
            trace.flush()
            document = run_json(capsys, "top", str(path))
            assert document["alive"] and not document["stopped"]
            (state,) = document["pools"]
            assert state["used"] == 4096 and state["open_calls"][0]["name"] == "prefill"
            out = run(capsys, "top", str(path), "--once")
            assert "running" in out and "in prefill" in out and "kq" in out
        pool.empty(10)
    assert "ended" in run(capsys, "top", str(path))


def test_top_follows_until_the_end(tmp_path):
    """In a terminal it stays, and leaves when the traced program has ended."""
    code = (
        "import sys, time; from lowlevel import Pool, Trace\n"
        "with Pool(8192) as pool, Trace(sys.argv[1]) as trace:\n"
        "    trace.attach(pool)\n"
        "    for i in range(10):\n"
        "        with pool.scope('s'): pool.empty(10, tag=f'round {i}'); time.sleep(0.1)\n"
    )
    path = str(tmp_path / "t.jsonl")
    program = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
    while not (os.path.exists(path) and os.path.getsize(path)):
        assert program.poll() is None
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "tools", "pool", "top", path, "--interval", "0.05"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert program.wait(60) == 0 and done.returncode == 0, done.stderr
    assert "round 9" in done.stdout and "ended" in done.stdout


def test_attention_marks_its_calls(capsys, tmp_path):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 16), dtype="f4") for n in (8, 32, 32))
    path = str(tmp_path / "t.jsonl")
    with lowlevel.Pool("4MiB") as pool, Trace(path) as trace:
        trace.attach(pool)
        plans = []
        for method in ("auto", "steps"):
            lowlevel.attention(q, k, v, pool=pool, method=method)
            sizes = dict(n_head=2, n_tokens=8, n_kv=32, d_k=16, d_v=16, budget="4MiB")
            plans.append(lowlevel.plan_attention(**sizes, method=method).scratch_bytes)
        assert pool.used == 0
    (state,) = run_json(capsys, "stats", path)["pools"]
    calls = state["calls"]["attention"]
    assert (calls["n"], calls["n_planned"], calls["n_off_plan"]) == (2, 2, 0)
    assert calls["peak"] == state["peak"] == max(plans)
    run(capsys, "check", path, "--plan", "--no-leaks", "--no-refusals", "--max", str(max(plans)))


def test_help(capsys):
    actions = ("stats", "map", "timeline", "top", "diff", "replay", "check", "export")
    for argv in ([], *([action] for action in actions)):
        with pytest.raises(SystemExit) as exit_:
            main(["pool", *argv, "--help"])
        assert exit_.value.code == 0 and "usage: kqcap pool" in capsys.readouterr().out
    for argv in ([], ["frobnicate", "x"], ["export", "x"], ["replay", "x", "--policy", "magic"]):
        with pytest.raises(SystemExit) as exit_:
            main(["pool", *argv])
        assert exit_.value.code == 2


def test_what_cannot_be_checked_is_not_said_to_hold(capsys, said, tmp_path):
    empty = tmp_path / "empty"
    with Trace(empty):
        pass
    assert "nothing to check" in fails(capsys, "check", str(empty), "--max", "1")
    no_calls = str(Lines().alloc(1, 0, 256).write(tmp_path / "t"))
    assert "no call in" in fails(capsys, "check", no_calls, "--plan")
    assert "not ended" in run(capsys, "check", no_calls, "--max", "1KiB")
    assert not run_json(capsys, "check", no_calls, "--max", "1KiB")["whole"]
    assert "had a plan" in run(capsys, "check", said["path"], "--plan")
    assert run_json(capsys, "check", said["path"], "--plan")["whole"]
    assert "no pool was recorded by then" in run(capsys, "map", no_calls, "--at", "0")


def test_devices_are_not_replaced(capsys, said):
    for out in ("/dev/null", "/dev/full"):
        argv = ["export", said["path"], "--format", "rmm", "-o", out, "--force"]
        assert "name a file" in fails(capsys, *argv)


def test_the_bar_of_top_has_a_line_of_its_own(capsys, tmp_path):
    path = str(Lines(budget=1024).alloc(1, 0, 512).write(tmp_path / "t"))
    bars = [line for line in run(capsys, "top", path, "--once").splitlines() if "━" in line]
    assert bars == ["━" * 30 + "─" * 30]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_no_character_is_too_much_for_a_terminal(monkeypatch, tmp_path, encoding):
    """LC_ALL=C and the like: `top`'s bar, and names out of the file."""
    lines = Lines(budget=1024).alloc(1, 0, 512, "Schlüssel 🦙 ±")
    path = str(lines.write(tmp_path / "t"))
    for argv in (["top", "--once"], ["stats"], ["map"], ["replay", "--smallest"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["pool", *argv, path]) == 0
        stream.flush()
        out = stream.buffer.getvalue().decode(encoding)
        if argv[0] == "top":
            assert "=" * 30 + "-" * 30 in out
        assert argv[0] == "replay" or "ssel \\U0001f999" in out
