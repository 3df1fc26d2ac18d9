"""Exports: what other tools would compute from them is what the trace says."""

import csv
import io
import json
import pickle
import pickletools
import random
import secrets

import pytest
from traces import Lines, block, record

from lowlevel.inspect.export import export, rmm_log, torch_snapshot
from lowlevel.inspect.run import read_run

# Those that memory_viz's own unpickler knows (torch/utils/viz/MemoryViz.js).
VIEWER_OPCODES = set(
    "APPENDS BINGET BININT BININT1 BININT2 EMPTY_DICT EMPTY_LIST FRAME LONG1 LONG_BINGET MARK MEMOIZE PROTO "
    "SETITEMS SHORT_BINUNICODE STOP TUPLE2 APPEND NEWFALSE BINPUT BINUNICODE EMPTY_TUPLE NEWTRUE NONE BINFLOAT "
    "TUPLE TUPLE1 TUPLE3 LONG_BINPUT LIST DICT SETITEM".split()
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def said(path):
    seed = secrets.randbits(32)
    print("seed", seed)
    return record(path, random.Random(seed))


def peak_of(entries):
    """The most that is allocated at once, as a viewer adds it up, and what is left."""
    live, peak = {}, 0
    for entry in entries:
        if entry["action"] == "alloc":
            assert entry["addr"] not in live
            live[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
        peak = max(peak, sum(live.values()))
    return peak, live


def test_torch(path, said):
    data = export(path, "torch")
    assert data[:2] == b"\x80\x04"  # protocol 4: the viewer reads no other
    assert {opcode.name for opcode, _, _ in pickletools.genops(data)} <= VIEWER_OPCODES
    snapshot = pickle.loads(data)
    (trace,), (segment,) = snapshot["device_traces"], snapshot["segments"]
    peak, live = peak_of(trace)
    assert peak == said["peak"]
    active = {
        b["address"]: b["size"] for b in segment["blocks"] if b["state"] == "active_allocated"
    }
    assert active == live and sum(active.values()) == said["snapshot"]["used"]
    assert segment["total_size"] == 65536 == sum(b["size"] for b in segment["blocks"])
    address = segment["address"]
    for b in segment["blocks"]:  # the viewer finds a block by adding up sizes
        assert b["address"] == address
        address += b["size"]
    assert [e["action"] for e in trace].count("oom") == said["n_refused"]
    times = [e["time_us"] for e in trace]
    assert times == sorted(times)
    assert "unknown" in {e.get("category") for e in trace}
    allocs = [e for e in trace if e["action"] == "alloc"]
    assert {e["category"] for e in allocs} >= {"a", "b", "c", "early"}
    kq = next(e for e in allocs if e["category"] == "kq")
    assert [f["name"] for f in kq["frames"]] == [
        "kq (float32 10 x 6)",
        "x",
        "layer 0",
        "MainThread",
    ]


def test_torch_of_a_snapshot(path, said, tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps(said["snapshot"]))
    (segment,) = torch_snapshot(file)["segments"]
    assert segment["allocated_size"] == said["snapshot"]["used"]
    with pytest.raises(ValueError, match="needs a trace"):
        export(file, "rmm")


def test_rmm(path, said):
    rows = list(csv.DictReader(io.StringIO(export(path, "rmm").decode())))
    assert list(rows[0]) == ["Thread", "Time", "Action", "Pointer", "Size", "Stream"]
    live, peak = {}, 0
    for row in rows:
        pointer, size = int(row["Pointer"], 16), int(row["Size"])
        if row["Action"] == "allocate":
            assert pointer not in live and size > 0
            live[pointer] = size
        else:  # RMM's benchmarks/utilities/log_parser.hpp knows no third action
            assert row["Action"] == "free" and live.pop(pointer) == size
        peak = max(peak, sum(live.values()))
    assert peak == said["peak"] and sum(live.values()) == said["snapshot"]["used"]
    assert all(
        row["Stream"] == "0" and row["Thread"].isdigit() and len(row["Time"]) == 15 for row in rows
    )


@pytest.mark.parametrize("started", ["soon", -1, 1e300, None, True, 10**400])
def test_headers_that_cannot_be_believed(path, started):
    Lines(started=started).alloc(1, 0, 256).write(path)
    assert torch_snapshot(path)["device_traces"][0][1]["time_us"] == 2000
    assert export(path, "rmm").splitlines()[1] == b"1,00:00:00.002000,allocate,0x100000000,256,0"


def test_pools_and_interrupts(path):
    lines = Lines().alloc(1, 0, 256)
    lines.lines.append({"t": 1, "op": "attach", "pool": 9, "used": 0, "device": "cpu", "budget": 2**62, "peak": 0})  # fmt: skip
    lines.used = 512
    lines.add("resync", live=[block(2, 0, 512)])
    lines.lines.append({"t": 2, "op": "resync", "pool": 9, "used": 256, "live": [block(1, 0, 256)]})
    lines.write(path)
    snapshot = torch_snapshot(path)
    assert [peak_of(trace)[0] for trace in snapshot["device_traces"]] == [512, 256]
    first, second = snapshot["segments"]
    assert first["address"] + first["total_size"] <= second["address"]
    assert (first["device"], second["device"]) == (0, 1)
    assert len(rmm_log(path)) == 1 + 2 + 1
    assert read_run(path).pools[9].used == 256


def test_formats(path, said):
    with pytest.raises(ValueError, match="torch, rmm"):
        export(path, "json")
