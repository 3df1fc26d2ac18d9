"""What traces and snapshots add up to, and that no file from elsewhere, however damaged, does harm."""

import json
import os
import pickle
import random
import secrets

import pytest
from traces import HEADER, Lines, block, mutant, record

from lowlevel.inspect.block_map import block_map
from lowlevel.inspect.check import check, diff
from lowlevel.inspect.export import rmm_log, torch_snapshot
from lowlevel.inspect.reader import EventFile, TraceFormatError, is_trace, read_snapshot
from lowlevel.inspect.replay import read_requests, replay
from lowlevel.inspect.run import LiveRun, read_run
from lowlevel.inspect.state import MAX_NESTED_CALLS, live_block
from lowlevel.inspect.timeline import html, png, timeline
from lowlevel.pool import Pool
from lowlevel.pool.trace import Trace

N_MUTANTS = int(os.environ.get("KQCAP_FUZZ", 10_000))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def only_pool(path):
    (pool,) = read_run(path).pools.values()
    return pool


# ---------------------------------------------------------------- right answers


@pytest.mark.parametrize("debug", [False, True])
def test_totals_are_the_pools_own(path, debug):
    seed = secrets.randbits(32)
    print("seed", seed)
    said = record(path, random.Random(seed), debug=debug)
    run = read_run(path)
    (pool,) = run.pools.values()
    snapshot = said["snapshot"]
    assert run.stopped and not pool.attached
    assert (pool.peak, pool.n_taken, pool.n_refused) == (
        said["peak"],
        said["n_taken"],
        said["n_refused"],
    )
    assert pool.used == snapshot["used"]
    data = pool.to_dict()
    assert data["holders"] == snapshot["holders"]
    assert data["holders_at_peak"] == snapshot["at_peak"]["holders"]
    assert data["largest_free"] == snapshot["largest_free"]
    assert data["fragmentation"] == pytest.approx(snapshot["fragmentation"])
    blocks = [{**b.to_dict()} for b in pool.blocks()]
    # those from before the recording have no time
    assert all((b.pop("t") is None) == (b["tag"] == "early") for b in blocks)
    assert blocks == snapshot["live"]
    assert sum(b.n_bytes for b in pool.at_peak()) == pool.peak
    assert run.devices["cpu"].peak == pool.peak
    calls = data["calls"]["attention"]
    assert calls["n"] == calls["n_planned"] > 0 and calls["n_off_plan"] == 0
    assert calls["peak"] == 1024
    json.dumps(data)


def test_names_that_are_no_unicode_are_read_back(path):
    """A lone surrogate is what os.fsdecode makes of a byte that is no UTF-8; the writer escapes it."""
    with Pool(4096) as pool, Trace(path) as trace:
        trace.attach(pool)
        pool.free(pool.empty(3, tag="w\udce4rme"))
    assert list(only_pool(path).tags) == ["w\udce4rme"]


def test_a_snapshots_totals(path, tmp_path):
    said = record(path, random.Random(7))
    file = tmp_path / "snapshot.json"
    file.write_text(json.dumps(said["snapshot"], indent=1))
    from_trace, from_snapshot = only_pool(path).to_dict(), only_pool(file).to_dict()
    for key in ("budget", "used", "peak", "holders", "holders_at_peak", "largest_free"):
        assert from_snapshot[key] == from_trace[key], key


def test_the_state_at_a_moment(path):
    Lines().alloc(1, 0, 512).alloc(2, 512, 256, "b").free(1, 0, 512).write(path)
    assert [b.number for b in read_run(path, until=0.0025).pools[1].blocks()] == [1]
    assert [b.number for b in read_run(path, until=0.0035).pools[1].blocks()] == [1, 2]
    assert [b.number for b in read_run(path).pools[1].blocks()] == [2]


def test_blocks_from_before_the_recording_count_once(path):
    lines = Lines(used=1024)
    for n, size in ((4, 512), (7, 512), (8, 0)):
        lines.alloc(n, 512 * (n > 4), size, used=1024)
    lines.used = 1024
    lines.alloc(9, 1024, 256).free(4, 0, 512).free(9, 1024, 256).alloc(10, 0, 256).write(path)
    pool = only_pool(path)
    assert (pool.used, pool.peak) == (768, 1280)
    assert pool.n_taken == 2 + 1  # and the one without bytes, which cannot be told apart
    assert [b.number for b in pool.at_peak()] == [4, 7, 8, 9] or sum(
        b.n_bytes for b in pool.at_peak()
    ) == 1280


def test_after_an_interrupt_what_is_listed_counts(path):
    lines = Lines().alloc(1, 0, 256).alloc(2, 256, 512)
    lines.used = 256 + 1024
    lines.add("resync", live=[block(1, 0, 256), block(3, 256, 1024)])
    lines.free(1, 0, 256).free(3, 256, 1024).alloc(2, 0, 256).write(path)
    pool = only_pool(path)
    assert (pool.used, pool.peak, [b.number for b in pool.at_peak()]) == (256, 1280, [1, 3])


def test_a_calls_own_bytes_are_its_threads(path):
    lines = Lines()
    for number, thread in ((1, "x"), (2, "y")):
        details = {"scratch_bytes": 256 if thread == "x" else 512}
        lines.add("begin", call=number, name="attention", thread=thread, details=details)
    lines.alloc(1, 0, 256, thread="x").alloc(2, 256, 256, thread="y").alloc(
        3, 512, 1024, thread="z"
    )
    lines.add("end", call=2, name="attention", thread="y", ok=True)
    lines.add("end", call=1, name="attention", thread="x", ok=True).write(path)
    pool = only_pool(path)
    assert pool.calls["attention"].n == 2 and pool.calls["attention"].n_off_plan == 1
    (off,) = pool.off_plan
    assert (off.thread, off.peak, off.planned) == ("y", 256, 512)
    (broken,) = check(read_run(path), kept_plans=True)
    assert "256 bytes, planned 512" in broken["what"]


def test_a_trace_that_grows(path):
    lines = Lines().alloc(1, 0, 256).alloc(2, 256, 256)
    text = "".join(json.dumps(line) + "\n" for line in lines.lines)
    path.write_text("")
    with LiveRun(path) as run, open(path, "a") as file:
        assert not run.update()
        for character in text:
            file.write(character)
            file.flush()
            run.update()
        assert run.pools[1].used == 512 and not run.stopped
        file.write('{"t":9,"op":"stop","n_events":3}\n')
        file.flush()
        assert run.update() and run.stopped and not run.update()


def test_two_pools_of_a_device_are_limited_together(path):
    lines = Lines().alloc(1, 0, 512)
    lines.lines.append({"t": 1, "op": "attach", "pool": 2, "used": 0, "device": "cpu", "budget": 9999, "peak": 0})  # fmt: skip
    lines.lines.append({**lines.lines[2], "pool": 2, "t": 2})
    lines.write(path)
    run = read_run(path)
    assert run.devices["cpu"].peak == 1024
    assert check(run, limit=1024) == []
    (broken,) = check(run, limit=1023)
    assert "1 over the limit of 1023" in broken["what"]
    (pair, extra) = diff(run, read_run(path))
    assert pair["totals"]["peak"] == (512, 512) and extra["tags"] == {"a": (512, 512)}


def test_checks(path):
    lines = Lines().alloc(1, 0, 512)
    lines.add("refuse", size=2**20, tag="kq", error={})
    lines.write(path)
    run = read_run(path)
    assert check(run, limit=512) == []
    broken = check(run, limit=0, no_refusals=True, no_leaks=True, kept_plans=True)
    assert [one["check"] for one in broken] == ["max", "no-refusals", "no-leaks"]


def test_map_of_an_arena():
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    offset, blocks = 0, []
    for n in range(40):
        offset += 256 * rng.randrange(3)
        size = 256 * rng.randrange(5)
        blocks.append(only_block(n, offset, size, rng.choice("abc")))
        offset += size
    end = max(b.offset + b.n_bytes for b in blocks if b.n_bytes)
    for n_cells in (1, 7, 100, 10_000):
        for size in (None, offset, 4 * offset):
            picture = block_map(blocks, n_cells, size)
            assert len(picture.cells) <= n_cells and picture.end == end
            taken = sum(share for _, share in picture.cells) * picture.cell_bytes
            assert taken == pytest.approx(sum(b.n_bytes for b in blocks))
            assert all((tag is None) == (share == 0) for tag, share in picture.cells)


def only_block(n, offset, size, tag):
    return live_block(block(n, offset, size, tag), 0.0)


# ---------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x.alloc(1, 0, 256), "taken twice"),
        (lambda x: x.add("attach", pool=2, used=256, device="cpu", budget=512, peak=0).add("reset_peak", pool=2), "not listed"),
        (lambda x: x.alloc(2, 0, 256), "overlaps"),
        (lambda x: x.alloc(2, 65536, 256), "leaves the arena"),
        (lambda x: x.alloc(2, 2**62, 2**62), "leaves the arena"),
        (lambda x: x.free(2, 0, 256), "not live"),
        (lambda x: x.free(1, 0, 512, used=0), "not live"),
        (lambda x: x.alloc(2, 256, 256, used=1), "the blocks hold"),
        (lambda x: x.add("alloc", pool=2), '"n" of op "alloc"'),
        (lambda x: x.add("reset_peak", pool=2), "pool 2 is not attached"),
        (lambda x: x.add("attach", device="cpu", budget=1, peak=0), "attached twice"),
        (lambda x: x.add("attach", pool=2, device="cpu", budget=1, peak=0), "of a budget of 1"),
        (lambda x: x.add("end", call=1, name="a", thread="", ok=True), "did not begin"),
        (lambda x: x.add("resync", live=[block(1, 0, 256), block(2, 128, 256)]), "overlaps"),
        (lambda x: x.add("resync", live=[block(1, 0, 256)] * 2), "listed twice"),
        (lambda x: x.add("resync", live=[7]), "a block is 7"),
        (lambda x: x.add("resync", live=[{**block(1, 0, 256), "shape": ["x"]}]), '"shape"'),
        (lambda x: x.alloc(2, 256, 256, shape=[-1]), '"shape"'),
        (lambda x: x.add("detach", snapshot={}).alloc(2, 256, 256), "not attached"),
        (lambda x: [x.add("begin", call=i, name="", thread="", details={}) for i in range(MAX_NESTED_CALLS + 1)], "inside one another"),
    ],
)  # fmt: skip
def test_contradictions_are_named_with_their_line(path, change, match):
    lines = Lines().alloc(1, 0, 256)
    change(lines)
    lines.write(path)
    with pytest.raises(TraceFormatError, match=f"{path.name}, line {len(lines.lines)}: .*{match}"):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "neither a trace nor"),
        ({"used": 0}, "the live blocks hold"),
        ({"peak": 10**9}, "the peak is"),
        ({"budget": 256}, "leaves the arena"),
        ({"live": {}}, '"live"'),
        ({"live": [{}]}, '"offset"'),
        ({"at_peak": None}, '"at_peak"'),
        ({"at_peak": {"used": 1}}, '"live"'),
    ],
)
def test_snapshots_that_do_not_hold(path, tmp_path, change, match):
    said = record(path, random.Random(3))
    file = tmp_path / "snapshot.json"
    file.write_text(json.dumps({**said["snapshot"], **change}))
    with pytest.raises(TraceFormatError, match=match):
        read_run(file)


def test_files_that_are_neither(tmp_path, path):
    for content in (
        b"",
        b"\n",
        b"{}",
        b"[1]",
        b"null",
        json.dumps(HEADER).encode(),
        b"\xff\xfe\x00",
        b'{"version": 1}',
        b"x" * 99,
    ):
        path.write_bytes(content)
        with pytest.raises(TraceFormatError, match=path.name):
            read_run(path)
    with pytest.raises(OSError):
        read_run(tmp_path)
    with pytest.raises(OSError):
        read_run(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    for read in (read_run, is_trace, read_snapshot, EventFile):
        with pytest.raises(TraceFormatError, match="not a regular file"):
            read(tmp_path / "pipe")


def test_lines_that_would_fill_the_memory(path, monkeypatch):
    monkeypatch.setattr("lowlevel.inspect.reader.MAX_LINE_VALUES", 1000)
    good = json.dumps(HEADER) + "\n"
    path.write_text(good + '{"t":0,"op":"x","y":[' + "[]," * 2000 + "0]}\n")
    with pytest.raises(TraceFormatError, match="line 2: over 1000 values"):
        read_run(path)
    path.write_text('{"version": 1, "live": [' + "[]," * 2000 + "0]}")
    with pytest.raises(TraceFormatError, match="over 1000 values"):
        read_run(path)
    monkeypatch.setattr("lowlevel.inspect.reader.MAX_LINE_BYTES", 3000)
    with pytest.raises(TraceFormatError, match="over 3000 bytes"):
        read_run(path)


def exported(path, run):
    pickle.dumps(torch_snapshot(path), protocol=4)
    rmm_log(path)


def replayed(path, run):
    for requests in read_requests(path).values():
        replay(requests, budget=min(requests.budget, 2**62))
        assert replay(requests, requests.peak, "buddy").policy == "buddy"


def pictured(path, run):
    data = timeline(path)
    assert [pool["peak"] for pool in data["pools"]] == [pool.peak for pool in run.pools.values()]
    html(data)


def drawn(path, run):
    png(timeline(path))


# What is tried with one file after the other; the costlier ones less often.
USES = [exported, replayed, pictured] * 200 + [drawn]


def understood(path, use):
    """Read a file, its answers checked against each other, and put it to one use."""
    run = read_run(path)
    json.dumps([pool.to_dict() for pool in run.pools.values()])
    for pool in run.pools.values():
        assert 0 <= pool.used <= pool.peak <= pool.budget
        assert pool.used - pool.unlisted == sum(b.n_bytes for b in pool.blocks())
        block_map(pool.at_peak(), 200)
    check(run, limit=0, no_refusals=True, no_leaks=True, kept_plans=True)
    diff(run, run)
    if any(pool.from_snapshot for pool in run.pools.values()):
        pickle.dumps(torch_snapshot(path), protocol=4)
    else:
        use(path, run)


def test_damaged_files_end_in_a_clear_error_or_a_right_answer(tmp_path):
    """The time of 10,000 is bounded by design: about a millisecond each."""
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    folder = tmp_path / "folder"
    folder.mkdir()
    good, snapshots = [], []
    for _ in range(4):
        said = record(folder / "good", random.Random(rng.random()), n_steps=12, budget="8KiB")
        good.append((folder / "good").read_bytes())
        snapshots.append(json.dumps(said["snapshot"]).encode() + b"\n")
        for use in set(USES):
            understood(folder / "good", use)
    (folder / "good").unlink()
    path = folder / "mutant"
    n_errors = 0
    for i in range(N_MUTANTS):
        path.write_bytes(mutant(rng, rng.choice(snapshots if i % 8 == 0 else good)))
        try:
            understood(path, USES[i % len(USES)])
        except TraceFormatError as error:
            n_errors += 1
            assert str(path) in str(error) and len(str(error)) < 1000
    assert N_MUTANTS * 0.3 < n_errors < N_MUTANTS * 0.97
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["mutant"]
