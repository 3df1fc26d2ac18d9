"""Traces: what is written, that it can be read while it is written, and that damaged files end in a clear error."""

import json
import os
import random
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from lowlevel.inspect.reader import TraceFormatError, read_events, read_header
from lowlevel.pool import BudgetError, Pool
from lowlevel.pool import trace as trace_module
from lowlevel.pool.arena import Arena
from lowlevel.pool.trace import Trace


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def events_of(path, *ops):
    return [event for event in read_events(path) if not ops or event["op"] in ops]


class Replay:
    """The state that a trace's events lead to, each checked against the one before."""

    def __init__(self):
        self.live = {}
        self.peak = 0

    def apply(self, event):
        op = event["op"]
        if op == "alloc":
            assert event["n"] not in self.live
            self.live[event["n"]] = event
        elif op == "free":
            taken = self.live.pop(event["n"])
            assert all(taken[key] == event[key] for key in ("offset", "size", "tag"))
        elif op == "resync":
            self.live = {
                block["number"]: {"offset": block["offset"], "size": block["n_bytes"]}
                for block in event["live"]
            }
        elif op == "reset_peak":
            self.peak = event["used"]
        if "used" in event and op != "attach":
            self.peak = max(self.peak, event["used"])

    def blocks(self):
        return [(block["offset"], block["size"]) for block in self.live.values()]


def test_what_a_trace_says(path):
    with Pool("1MiB") as pool, Trace(path) as trace:
        early = pool.empty(10, tag="early")
        trace.attach(pool)
        with pool.scope("layer 0"), pool.call("attention", n_kv=4096, scratch_bytes=512):
            pool.empty((8, 16), "bfloat16", tag='k"q\n')
            with pytest.raises(BudgetError):
                pool.empty(2**30, tag="big")
        pool.reset_peak()
        pool.free(early)
        trace.detach(pool)
        pool.free(pool.empty(7))  # not recorded any more
    header = read_header(path)
    assert (header["version"], header["pid"]) == (1, os.getpid())
    events = events_of(path)
    assert [event["op"] for event in events] == (
        ["attach", "alloc", "begin", "alloc", "refuse", "end", "free", "reset_peak", "free"]
        + ["detach", "stop"]
    )
    attach, early, begin, alloc, refuse, end, free, reset, _, detach, stop = events
    assert (attach["device"], attach["budget"], attach["used"]) == ("cpu", 2**20, 256)
    assert (early["tag"], early["offset"], early["size"]) == ("early", 0, 256)
    assert begin["details"] == {"n_kv": 4096, "scratch_bytes": 512}
    assert begin["call"] == end["call"] and end["ok"] is True
    assert alloc["tag"] == free["tag"] == 'k"q\n'
    assert (alloc["scope"], alloc["thread"]) == ("layer 0", "MainThread")
    assert (alloc["dtype"], alloc["shape"]) == ("bfloat16", [8, 16])
    assert (alloc["n"], alloc["offset"], alloc["size"], alloc["used"]) == (2, 256, 256, 512)
    assert refuse["error"]["requested"] == 2**32 and refuse["size"] == 2**32
    assert (free["used"], reset["used"]) == (256, 256)
    assert detach["snapshot"]["peak"] == 256
    assert stop["n_events"] == len(events) - 1
    times = [event["t"] for event in events]
    assert times == sorted(times) and times[0] >= 0


def test_the_peaks_blocks_are_in_the_trace(path):
    with Trace(path) as trace:
        with Pool("1MiB") as pool:
            trace.attach(pool)
            with pool.scope("s"):
                pool.empty(1000, tag="kq")
            pool.free(pool.empty(10, tag="small"))
        (detach,) = events_of_open(trace, "detach")  # closing a pool detaches it
    at_peak = detach["snapshot"]["at_peak"]
    assert at_peak["used"] == 4096
    assert [holder["tag"] for holder in at_peak["holders"]] == ["kq"]
    assert detach["snapshot"]["closed"] is True


def events_of_open(trace, *ops):
    trace.flush()
    return events_of(trace.path, *ops)


@pytest.mark.parametrize("seed", range(5))
def test_a_trace_replays_to_the_pools_state(path, seed):
    rng = random.Random(seed)
    replay = Replay()
    with Pool("32KiB") as pool, pool.scope("s"), Trace(path) as trace:
        trace.attach(pool)
        arrays, refusals = [], 0
        for _ in range(500):
            if arrays and rng.random() < 0.45:
                pool.free(arrays.pop(rng.randrange(len(arrays))))
            else:
                try:
                    arrays.append(pool.empty(rng.randrange(4000), "uint8", tag=rng.choice("abc")))
                except BudgetError:
                    refusals += 1
        for event in events_of_open(trace):
            replay.apply(event)
            if "used" in event and event["op"] != "attach":
                assert Arena(2**15, replay.blocks()).used == event["used"]
        assert sorted(replay.blocks()) == sorted((b.offset, b.n_bytes) for b in pool.live)
        assert replay.peak == pool.peak
        assert refusals == len(events_of(path, "refuse")) > 0


def test_pools_and_threads_in_one_trace(path):
    pools = [Pool("64KiB"), Pool("64KiB", debug=True)]

    def work(pool):
        for i in range(200):
            with pool.call("work", i=i), pool.scope("s"):
                pool.empty(100 + i, tag=str(i))

    with Trace(path) as trace:
        for pool in pools:
            trace.attach(pool)
        threads = [threading.Thread(target=work, args=(pool,)) for pool in pools * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pool in pools:
            pool.close()
    replays = {1: Replay(), 2: Replay()}
    open_calls = set()
    n_allocs = 0
    for event in read_events(path):
        if event["op"] == "begin":
            open_calls.add(event["call"])
        elif event["op"] == "end":
            open_calls.remove(event["call"])
        n_allocs += event["op"] == "alloc"
        if "pool" in event:
            replay = replays[event["pool"]]
            replay.apply(event)
            if event["op"] in ("alloc", "free"):
                assert sum(size for _, size in replay.blocks()) == event["used"]
    assert n_allocs == 800 and not open_calls
    assert not replays[1].live and not replays[2].live


def test_a_call_that_fails_says_so(path):
    with Pool(4096) as pool, Trace(path) as trace:
        trace.attach(pool)
        with pytest.raises(KeyError), pool.call("attention"):
            raise KeyError
    (end,) = events_of(path, "end")
    assert end["ok"] is False


def test_details_of_any_kind_are_written(path):
    with Pool(4096) as pool, Trace(path) as trace:
        trace.attach(pool)
        with pool.call("attention", n=np.int64(3), path=path, nothing=None, names=("a",)):
            pass
    (begin,) = events_of(path, "begin")
    assert begin["details"] == {"n": 3, "path": str(path), "nothing": None, "names": ["a"]}


@pytest.mark.parametrize("details", [float("nan"), {(1, 2): 3}, {"a": [float("-inf")]}])
def test_details_that_json_cannot_say_do_not_spoil_the_file(path, details):
    with Pool(4096) as pool, Trace(path) as trace:
        trace.attach(pool)
        with pool.call("attention", odd=details):
            pass
    (begin,) = events_of(path, "begin")
    assert str(details)[:4] in begin["details"]["unwritable"]
    assert len(events_of(path, "end")) == 1


def test_an_interrupted_allocation_is_taken_back_in_the_trace(path):
    class Interrupting:
        def __init__(self, recorder):
            self._recorder = recorder

        def __getattr__(self, name):
            if name == "block":
                raise KeyboardInterrupt
            return getattr(self._recorder, name)

    with Pool(4096) as pool, pool.scope("s"), Trace(path) as trace:
        trace.attach(pool)
        pool.empty(10)
        recorder, pool._trace = pool._trace, Interrupting(pool._trace)
        with pytest.raises(KeyboardInterrupt):
            pool.empty(20)
        pool._trace = recorder
        pool.empty(30)
    replay = Replay()
    for event in read_events(path):
        replay.apply(event)
    assert sorted(replay.blocks()) == [(0, 256), (256, 256)]
    assert len(events_of(path, "resync")) == 1


def test_without_a_trace_calls_cost_one_shared_object():
    with Pool(4096) as pool:
        assert pool.call("a") is pool.call("b", n=3)


def test_misuse(path, tmp_path):
    with Pool(4096) as pool:
        with Trace(path) as trace:
            trace.attach(pool)
            with pytest.raises(ValueError, match="traced already"):
                trace.attach(pool)
            with Trace(tmp_path / "other") as other:
                other.detach(pool)  # not its own: left alone
            pool.free(pool.empty(1))
        trace.stop()
        with pytest.raises(ValueError, match="is stopped"):
            trace.attach(pool)
        with Trace(path) as trace:  # a second trace of the same pool
            trace.attach(pool)
    with Trace(path) as trace, pytest.raises(ValueError, match="pool is closed"):
        trace.attach(pool)
    with pytest.raises(FileNotFoundError):
        Trace(tmp_path / "no" / "folder")


def test_readable_while_it_is_written(path):
    with Pool("1MiB") as pool, Trace(path) as trace:
        trace.attach(pool)
        follower = read_events(path, follow=True)
        assert next(follower)["op"] == "attach"
        for i in range(8):  # no flush here: the writer's own pace
            pool.free(pool.empty(100, tag=str(i)))
            assert next(follower)["tag"] == next(follower)["tag"] == str(i)
            data = path.read_bytes()
            assert data.endswith(b"\n")  # whole lines at any time
        trace.stop()
        assert [event["op"] for event in follower] == ["detach", "stop"]


def test_more_events_than_the_queue_holds(path, monkeypatch):
    monkeypatch.setattr(trace_module, "MAX_PENDING", 10)
    monkeypatch.setattr(trace_module, "LAG_SECONDS", 1000)
    with Pool(4096) as pool, Trace(path) as trace:
        trace.attach(pool)
        for _ in range(100):
            pool.free(pool.empty(1))
            assert len(trace._events) <= 10
    assert len(events_of(path, "alloc", "free")) == 200


class FullDisk:
    closed = False

    def write(self, data):
        raise OSError(28, "No space left on device")

    def close(self):
        self.closed = True


def test_a_full_disk_ends_the_trace_not_the_program(path):
    with Pool(4096) as pool:
        trace = Trace(path)
        trace.attach(pool)
        trace._file.close()
        trace._file = FullDisk()
        pool.free(pool.empty(1))
        trace.flush()
        for _ in range(10):
            pool.free(pool.empty(1))
        assert not trace._events
        with pytest.raises(OSError, match="No space left"):
            trace.stop()
        trace.stop()


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_program_that_just_ends_has_its_trace_written(path):
    done = run_python(
        """
        import sys
        from lowlevel.pool import Pool
        from lowlevel.pool.trace import Trace
        pool = Pool(4096)
        Trace(sys.argv[1]).attach(pool)
        a = pool.empty(1, tag="last")
        """,
        path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [event["op"] for event in read_events(path)] == ["attach", "alloc", "detach", "stop"]


def test_a_forked_child_leaves_the_file_to_its_parent(path):
    done = run_python(
        """
        import os, sys
        from lowlevel.pool import Pool
        from lowlevel.pool.trace import Trace
        pool = Pool(4096)
        with Trace(sys.argv[1]) as trace:
            trace.attach(pool)
            pool.free(pool.empty(1, tag="parent"))
            child = os.fork()
            pool.free(pool.empty(1, tag="parent" if child else "child"))
            if child == 0:
                sys.exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        """,
        path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [event["tag"] for event in events_of(path, "alloc", "free")] == ["parent"] * 4
    assert len(events_of(path, "stop")) == 1


# ---------------------------------------------------------------- files from elsewhere


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "good.jsonl"
    with Pool("64KiB") as pool, Trace(path) as trace:
        trace.attach(pool)
        for i in range(5):
            with pool.call("attention", n_kv=i), pool.scope("s"):
                pool.empty(10 * i, tag="kq")
                pool.empty(3, tag="v")
                with pytest.raises(BudgetError):
                    pool.empty(2**20)
        pool.reset_peak()
    return path.read_bytes()


def test_half_a_line_at_the_end_is_left_out(path, good_file):
    lines = good_file.splitlines(keepends=True)
    whole = len(lines[0])
    for line in lines[1:6]:
        for cut in (1, len(line) // 2, len(line) - 1):
            path.write_bytes(good_file[: whole + cut])
            n_whole = lines.index(line) - 1
            assert len(events_of(path)) == n_whole
        whole += len(line)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a trace"),
        (b"{}\n", "not a trace"),
        (b"GGUF\x00\xff", "not a trace"),
        (b"\xff\xfe\n", "line 1: no JSON"),
        (b"[1]\n", "line 1: no JSON object"),
        (b'{"format": "kqcap trace", "version": 1', "not a trace"),
        (b'{"format": "kqcap trace", "version": 2}\n', "version 2; this program reads version 1"),
        (b'{"format": "kqcap trace"}\n', "version None"),
    ],
)
def test_what_is_no_trace(path, content, match):
    path.write_bytes(content)
    with pytest.raises(TraceFormatError, match=match):
        list(read_events(path))


HEADER = b'{"format": "kqcap trace", "version": 1}\n'
FREE = {"t": 1, "op": "free", "pool": 1, "used": 0, "n": 1, "offset": 0, "size": 256, "tag": ""}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": -256}, '"size"'),
        ({"size": 2**63}, '"size"'),
        ({"size": 1.5}, '"size"'),
        ({"offset": "0"}, '"offset"'),
        ({"used": True}, '"used"'),
        ({"n": None}, '"n"'),
        ({"tag": 7}, '"tag"'),
        ({"t": -1}, '"t"'),
        ({"t": "now"}, '"t"'),
        ({"op": 3}, '"op"'),
        ({"op": None}, '"op"'),
    ],
)
def test_fields_that_do_not_hold_are_named_with_their_line(path, change, match):
    path.write_bytes(
        HEADER + json.dumps(FREE).encode() + b"\n" + json.dumps({**FREE, **change}).encode() + b"\n"
    )
    with pytest.raises(TraceFormatError, match=f"line 3: .*{match}"):
        list(read_events(path))


def test_hostile_lines(path, monkeypatch):
    for line in (
        b'{"t": 1, "op": "free", "x": ' + b"[" * 100_000,
        b'{"t": NaN}',
        b'{"t": 1e999, "op": "x"}',
    ):
        path.write_bytes(HEADER + line + b"\n")
        with pytest.raises(TraceFormatError, match="line 2"):
            list(read_events(path))
    monkeypatch.setattr("lowlevel.inspect.reader.MAX_LINE_BYTES", 1000)
    path.write_bytes(HEADER + b" " * 5000)
    with pytest.raises(TraceFormatError, match="over 1000 bytes"):
        list(read_events(path))


def test_unknown_ops_and_keys_are_skipped(path):
    later = json.dumps({"t": 0, "op": "prefetch"}) + "\n" + json.dumps({**FREE, "stream": 3}) + "\n"
    path.write_bytes(HEADER + later.encode())
    assert [event["op"] for event in read_events(path)] == ["free"]


def test_damaged_files_end_in_a_clear_error_or_an_answer(path, good_file):
    rng = random.Random(99)
    n_errors = 0
    for _ in range(1500):
        data = bytearray(good_file)
        for _ in range(rng.choice([1, 1, 2, 10])):
            kind = rng.random()
            at = rng.randrange(len(data))
            if kind < 0.5:
                data[at] = rng.randrange(256)
            elif kind < 0.7:
                del data[at : at + rng.randrange(1, 50)]
            elif kind < 0.9:
                data[at:at] = rng.choice([b"9" * 30, b"-", b"\n", b'"', b"{", b"1e400", b"\x00"])
            else:
                del data[at:]
            if not data:
                break
        path.write_bytes(data)
        try:
            for event in read_events(path):
                assert 0 <= event.get("used", 0) < 2**63
        except TraceFormatError as error:
            n_errors += 1
            assert str(path) in str(error)
    assert 250 < n_errors < 1500
