"""The timer, the bars, ``--only`` and the growing table that all benches share."""

import pytest

from tools.bench import bars, provenance, selection, timing
from tools.bench.growing_table import Column, GrowingTable
from tools.options import UsageError


def test_calls_are_timed_round_by_round():
    done = []
    calls = {name: lambda name=name: done.append(name) for name in "ab"}
    times = timing.interleaved(calls, 3)
    assert "".join(done) == "ab" + "ababab"  # one each is not counted
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(0 <= second < 1 for seconds in times.values() for second in seconds)
    assert timing.queued(calls, 1, "cudasim").keys() == {"a", "b"}
    assert len(done) == 12 and timing.seconds_of(calls["a"]) >= 0 and len(done) == 13
    assert timing.median_of_calls(calls["b"], 5) >= 0 and done[-5:] == ["b"] * 5


def test_ratios_are_of_one_round_each():
    found = timing.ratio([2.0, 6.0, 4.0, 9.0], [1.0, 2.0, 4.0])
    assert found == dict(median=2.0, least=1.0, most=3.0, n_rounds=3)
    assert timing.ratio_text(found) == "2.00 (1.00-3.00)"
    assert timing.ratio_text(timing.ratio([30.0, 60.0], [1.0, 1.0])) == "45"
    assert timing.ratio([1.0], []) is None and timing.ratio_text(None) == "-"


def test_few_runs_have_no_spread():
    assert timing.half_range([1.0, 3.0]) is None and timing.half_range([1.0, 3.0, 2.0]) == 1.0
    assert timing.speed_text(2.0, None) == "2.00" and timing.speed_text(2.0, 0.5) == "2.00 ± 0.50"


def test_bars():
    verdicts = [
        bars.verdict("speed", 1.5, 1.2, goal=2.0),
        bars.verdict("speed", 1.1, 1.2),
        bars.verdict("wrong values", 1, 0, at_most=True, must_hold=True),
        bars.verdict("scratch", 100, 100, at_most=True),
        bars.verdict("torch", None, 1.0, goal=2.0),
    ]
    assert [each["met"] for each in verdicts] == [True, False, False, True, None]
    assert [each["reaches_goal"] for each in verdicts] == [False, None, None, None, None]
    assert bars.missed(verdicts) == verdicts[1:3]
    assert bars.summary(verdicts) == "bars: 2 met, 2 missed, 1 not measured"
    lines = []
    bars.print_bars(verdicts[1:4], lines.append)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in "\n".join(lines).split("\n")
    ]
    assert rows[0] == ["bar", "value", "must be", ""]
    assert rows[2:] == [
        ["speed", "1.1", ">= 1.2", "MISSED"],
        ["wrong values", "1", "<= 0", "MISSED"],
        ["scratch", "100", "<= 100", "met"],
    ]


def test_only():
    names = ["gemm Q2_K", "gemm F16", "matvec Q2_K"]
    assert selection.select(names, None) == names
    assert selection.select(names, ["q2_k matvec", "f16"]) == names[1:]
    with pytest.raises(UsageError, match=r"no case has 'x'.*there are: gemm Q2_K"):
        selection.select(names, ["gemm", "x"])


def test_a_machine_is_said_in_a_line():
    machine = provenance.describe()
    assert f"{machine['cpu']}, {machine['cpus']} CPUs, load " in provenance.line(machine)
    told = dict(machine, gpu="H200", cuda=13000, load_before=None, load_after=1.25, commit=None)
    line = provenance.line(told)
    assert line.startswith("H200 cuda 13000; ") and "load ? -> 1.2" in line
    assert line.endswith(f"; {machine['date']}, commit ?")


def test_rows_are_as_wide_as_they_may_get():
    lines = []
    table = GrowingTable(
        [Column("what", str, 6, "left"), Column("n", lambda row: "1")], lines.append
    )
    table.add("a")
    table.add("abcdef")
    assert [text.count("\n") for text in lines] == [2, 0]  # the headings come once
    assert len({len(line.split("|")[1]) for text in lines for line in text.split("\n")}) == 1
