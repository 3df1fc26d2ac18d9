"""kqcap bench --vs: its cases, its peers' processes, what they compute, and its verdicts."""

import importlib.util
import json
import math
import os
import signal

import numba
import numpy as np
import pytest

import quant
from lowlevel.attention.reference import attention_float64
from lowlevel.cpu import simd
from tools.bench import versus, versus_cases, versus_report, versus_startup
from tools.bench.peers import first_calls, inputs, limits, ours
from tools.bench.peers import gguf as gguf_peer
from tools.bench.peers import numpy as numpy_peer
from tools.bench.peers.handle import Peer, PeerError, child_environment
from tools.bench.versus_cases import CASES, Bar, Case
from tools.cli import main
from tools.options import UsageError


def attention_sizes(n_head=4, n_head_kv=2, d_k=32, d_v=16, n_tokens=5, n_kv=40, v_in_k=False):
    return dict(
        n_head=n_head, n_head_kv=n_head_kv, d_k=d_k, d_v=d_v, n_tokens=n_tokens, n_kv=n_kv,
        v_in_k=v_in_k, torch=(),
    )  # fmt: skip


DEQUANTIZE = Case(
    "dequantize tiny",
    "dequantize",
    dict(qtype="Q2_K", rows=24, columns=512, copies=1),
    limits=("fill",),
    work=4.0 * 24 * 512,
    bars=(Bar("speed", ("gguf",), 1e9), Bar("speed", ("ggml",), 1.0)),
)
PRODUCT = Case(
    "gemm tiny",
    "gemm",
    dict(qtype="IQ4_NL", rows=64, columns=256, n=20, copies=2),
    limits=("int8 dot",),
    work=2.0 * 20 * 64 * 256,
)
ATTENTION = Case(
    "attention tiny",
    "attention",
    attention_sizes(),
    limits=("fma",),
    work=1e5,
    bars=(Bar("scratch", (), 2**21), Bar("limit", ("fma",), 0.0)),
)


# ---------------------------------------------------------------- cases


def test_names_are_unique_and_every_kind_has_cases():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.kind for case in CASES} == set(versus_cases.KINDS)
    assert all(name.startswith(case.kind) for name, case in zip(names, CASES, strict=True))


@pytest.mark.parametrize(
    "start, what, of, bound",
    [
        ("dequantize Q3_K", "limit", ("fill",), 0.85),
        ("dequantize Q3_K", "speed", ("ggml",), 5.0),
        ("dequantize Q8_0", "speed", ("ggml",), 1.1),
        ("dequantize IQ4_NL", "speed", ("gguf",), 50.0),
        ("matvec IQ4_NL", "limit", ("read",), 0.9),
        ("matvec Q2_K", "speed", ("ggml", "ggml repacked"), 1.2),
        ("gemm IQ4_NL", "speed", ("ggml", "ggml repacked"), 1.8),
        ("matvec MXFP4", "speed", ("ggml", "ggml repacked"), 1.2),
        ("matvec IQ1_S", "speed", ("ggml", "ggml repacked"), 1.0),
        ("gemm Q5_K", "speed", ("ggml", "ggml repacked"), 1.2),
        ("dequantize Q5_1", "limit", ("fill",), 0.85),
        ("attention prefill", "speed", ("torch",), 1.25),
        ("attention prefill", "limit", ("sgemm",), 0.9),
        ("attention prefill", "scratch", (), 2 * 2**20),
        ("attention mla", "speed", ("torch expanded", "torch gqa"), 1.4),
        ("attention decode", "speed", ("torch", "torch math"), 1.0),
        ("startup import", "seconds", (), 0.8),
        ("startup compile", "seconds", (), 5.0),
    ],
)
def test_every_row_of_the_issue_has_its_bars(start, what, of, bound):
    cases = [case for case in CASES if case.name.startswith(start)]
    assert cases
    for case in cases:
        assert (what, of, bound) in [(bar.what, bar.of, bar.bound) for bar in case.bars]


def test_kept_pairs_counts_a_causal_mask():
    rng = np.random.default_rng(0)
    for n_tokens in rng.integers(1, 30, 10):
        n_kv = n_tokens + rng.integers(0, 30)
        kept = np.arange(n_kv) <= np.arange(n_kv - n_tokens, n_kv)[:, None]
        assert versus_cases.kept_pairs(n_tokens, n_kv) == kept.sum()


def test_only_looks_for_all_words_in_a_name():
    assert versus_cases.select(None) == CASES
    names = [case.name for case in versus_cases.select(["gqa u1 ", "matvec q2_k"])]
    assert names == ["matvec Q2_K", "attention gqa decode 32/8 128/128 u1 n16384"]
    with pytest.raises(UsageError, match="no case has 'nothing' in its name; there are: dequant"):
        versus_cases.select(["nothing"])


# ---------------------------------------------------------------- inputs and peers in this process


@pytest.mark.parametrize("case", [DEQUANTIZE, PRODUCT, ATTENTION], ids=lambda case: case.kind)
def test_inputs_depend_on_the_seed_and_the_case_only(case):
    first, again, other = (inputs.make(case.to_dict(), seed) for seed in (1, 1, 2))
    assert inputs.digest(first) == inputs.digest(again) != inputs.digest(other)
    if case.kind == "attention":
        for array in first.values():
            np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("qtype", ["F16", "BF16", "Q6_K", "Q4_0"])
def test_blocks_decode_to_ordinary_weights(qtype):
    case = Case("x", "dequantize", dict(qtype=qtype, rows=10, columns=512, copies=1))
    blocks = inputs.make(case.to_dict(), 0)["blocks"]
    weights = quant.dequantize(quant.QuantTensor(blocks, qtype, (10, 512)))
    assert np.isfinite(weights).all() and 0.01 < weights.std() < 50


@pytest.mark.parametrize(
    "sizes, heads_at_once",
    [
        (attention_sizes(), 4),
        (attention_sizes(), 3),
        (attention_sizes(), 1),
        (attention_sizes(n_head=6, n_head_kv=6), 4),
        (attention_sizes(n_head=5, n_head_kv=1, d_v=24, v_in_k=True), 2),
        (attention_sizes(n_tokens=1), 4),
    ],
)
def test_attention_in_numpy_and_ours_are_attention(sizes, heads_at_once):
    data = inputs.make(dict(name="x", kind="attention", sizes=sizes), 3)
    v = inputs.value_of(data, sizes)
    expected = attention_float64(data["q"], data["k"], v)
    variants = ours.prepare(dict(kind="attention", sizes=sizes), data)
    variants["numpy"] = numpy_peer._variant(sizes, data, heads_at_once)
    assert set(variants) - {"ours bf16"} == {"ours", "ours f16", "numpy"}
    for name, variant in variants.items():
        variant.call(1)
        error = 0.03 if name == "ours bf16" else 2e-6
        np.testing.assert_allclose(variant.output(), expected, atol=error)


def test_numpy_does_not_try_what_memory_cannot_hold(monkeypatch):
    monkeypatch.setattr("tools.process.available_bytes", lambda: numpy_peer.MEMORY_MARGIN)
    sizes = attention_sizes()
    data = inputs.make(dict(name="x", kind="attention", sizes=sizes), 3)
    assert "more than is free" in numpy_peer._variant(sizes, data, 4)


def test_gguf_has_only_dequantisation():
    data = inputs.make(DEQUANTIZE.to_dict(), 0)
    variant = gguf_peer.prepare(DEQUANTIZE.to_dict(), data)["gguf"]
    variant.call(1)
    mine = ours.prepare(DEQUANTIZE.to_dict(), data)["ours"]
    mine.call(2)
    np.testing.assert_array_equal(variant.output(), mine.output())
    assert gguf_peer.prepare(PRODUCT.to_dict(), {}) == {}


# ---------------------------------------------------------------- the machine's limits


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_fill_and_read_touch_every_byte(monkeypatch, n_threads):
    monkeypatch.setattr(limits, "FILL_BYTES", 3 * limits.CHUNK_BYTES)
    monkeypatch.setattr(limits, "READ_BYTES", 5 * limits.CHUNK_BYTES)
    buffer = inputs.aligned(5 * limits.CHUNK_BYTES // 4)
    monkeypatch.setattr(limits, "_buffer", lambda n_bytes: buffer[: n_bytes // 4])
    for variant in limits.prepare(dict(limits=("fill",)), {}).values():
        buffer[:] = 7
        variant.call(n_threads)
        filled = variant.info["work"] // 4
        assert (buffer[:filled] == buffer[0]).all() and buffer[0] != 7
        assert (buffer[filled:] == 7).all()
    buffer[:] = np.random.default_rng(n_threads).integers(0, 5, buffer.size)
    sums, counter = np.zeros(16, np.float32), np.zeros(1, np.int64)
    limits._read(buffer, sums, counter)
    assert sums[0] == buffer.sum(dtype=np.float64)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_traffic_reads_and_writes_every_byte(monkeypatch, n_threads):
    """What is written are the bits of all that was read before: three chunks, 21 vectors for each."""
    monkeypatch.setattr(limits, "FILL_BYTES", 3 * limits.CHUNK_BYTES)
    buffer = inputs.aligned(4 * limits.CHUNK_BYTES // 4, np.int32)
    monkeypatch.setattr(limits, "_buffer", lambda n_bytes: buffer[: n_bytes // 4])
    blocks = np.zeros((3 * 21, 16), np.int32)
    blocks[np.arange(63), np.arange(63) % 16] = 4 << np.arange(63) // 16
    data = dict(blocks=np.append(blocks.view(np.uint8), np.zeros(100, np.uint8)))
    for variant in limits.prepare(dict(limits=("traffic",)), data).values():
        buffer[:] = 1 << 20
        variant.call(n_threads)
        written, rest = buffer[: 3 << 18].reshape(3, -1, 16), buffer[3 << 18 :]
        assert (written[:, 0] & 3 == 3).all() and (written < 1 << 20).all()
        assert (rest == 1 << 20).all()
        for task in range(3):
            read = np.bitwise_or.reduce(blocks[21 * task : 21 * task + 21], axis=0)
            assert (written[task, -1] & read == read).all()
        if n_threads == 1:
            assert (written[-1, -1] == 3 | np.bitwise_or.reduce(blocks, axis=0)).all()


@pytest.mark.parametrize("n_chains", [6, 12])
def test_the_fma_loop_does_every_round(n_chains):
    x, y, n_rounds = 0.5, 3.0, 7
    chains = [y, *(x + i for i in range(1, n_chains))]
    for _ in range(n_rounds):
        chains = [value * x + y for value in chains]
    results = np.zeros(16, np.float32)
    run = limits._fma_6 if n_chains == 6 else limits._fma_12
    run(np.float32(x), np.float32(y), results, n_rounds)
    assert results[0] == pytest.approx(16 * sum(chains), rel=1e-5)


@pytest.mark.parametrize("n_chains", [6, 12])
def test_the_dot_loop_does_every_round(n_chains):
    data = np.random.default_rng(5).integers(0, 100, 512).astype(np.uint8)
    results, n_rounds = np.zeros(16, np.float32), 11
    run = limits._dots_6 if n_chains == 6 else limits._dots_12
    run(data, results, n_rounds)
    unsigned = data.reshape(8, 64).astype(np.int64)
    total = sum((unsigned[n % 8] * unsigned[0]).sum() for n in range(n_rounds))
    assert results[0] == pytest.approx(n_chains * total + 16 * sum(range(n_chains)), rel=1e-6)


def test_every_limit_of_a_case_can_be_measured():
    wanted = {limit for case in CASES for limit in case.limits}
    assert wanted == set(limits._MAKE)
    wanted |= {bar.of[0] for case in CASES for bar in case.bars if bar.what == "limit"}
    assert wanted == set(limits._MAKE)


# ---------------------------------------------------------------- processes


def test_a_child_has_quiet_thread_pools(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment = child_environment(3)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and environment["OMP_NUM_THREADS"] == "3"


def test_a_peer_makes_the_same_inputs_and_survives_bad_requests(tmp_path):
    peer = Peer("gguf", 1)
    try:
        reply = peer.ask("prepare", case=DEQUANTIZE.to_dict(), seed=9)
        assert reply["variants"] == ["gguf"]
        assert reply["digest"] == inputs.digest(inputs.make(DEQUANTIZE.to_dict(), 9))
        with pytest.raises(PeerError, match="gguf: KeyError"):
            peer.ask("run", variant="no such", n_threads=1, count=1)
        assert peer.ask("run", variant="gguf", n_threads=1, count=3)["seconds"] > 0
        path = tmp_path / "out.npy"
        assert peer.ask("output", variant="gguf", path=str(path))["has_output"]
        assert np.load(path).size == 24 * 512
        os.kill(peer._process.pid, signal.SIGKILL)
        with pytest.raises(PeerError, match="gguf: its process ended with code -9"):
            peer.ask("drop")
    finally:
        peer.close()


def test_a_peer_that_died_is_started_again():
    peers = versus.Peers(["gguf"], 1)
    try:
        first = peers.get("gguf")
        assert peers.get("gguf") is first
        first._process.kill()
        first._process.wait()
        assert peers.get("gguf") is not first
    finally:
        peers.close()


@pytest.fixture
def tiny_cases(monkeypatch):
    monkeypatch.setattr(versus_cases, "CASES", (DEQUANTIZE, PRODUCT, ATTENTION))
    monkeypatch.setattr(versus, "SAMPLE_SECONDS", 0.001)


def vs(capsys, *argv, code=0):
    assert main(["bench", "--vs", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_small_run(capsys, tiny_cases):
    document = vs(capsys, "gguf,numpy", "-r", "2", "-t", "1,2")
    dequantize, product, attention = document["cases"]
    for case in document["cases"]:
        assert [row["threads"] for row in case["rows"]] == [1, 2] and case["notes"] == []
        for column in case["columns"]:
            assert not column["wrong"]
            assert all(len(seconds) == 2 for seconds in column["seconds"].values())
            assert set(column["count"]) == {"1", "2"} and min(column["count"].values()) >= 1
        for row in case["rows"]:
            assert row["rate"] == pytest.approx(case["work"] / row["seconds"]["ours"])
            assert row["roofline"].keys() == set(case["limits"])
    assert {c["name"]: c["error"] for c in dequantize["columns"]}["gguf"] == 0.0
    assert "ours" in [c["name"] for c in product["columns"]]
    errors = {c["name"]: c["error"] for c in attention["columns"]}
    assert 0 <= errors["numpy"] < 1e-5 and 0 <= errors["ours f16"] < 1e-5
    # a bar nothing can reach, one whose peer was not asked for, and two that hold
    assert [bar["met"] for bar in dequantize["rows"][0]["bars"]] == [False, None]
    assert [bar["met"] for bar in attention["rows"][0]["bars"]] == [True, True]
    assert document["machine"]["cpus"] >= 1 and "numba" in document["machine"]["packages"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "llama_cpp"))), reason="peers not installed"
)
@pytest.mark.parametrize("v_in_k", [False, True])
def test_torch_and_ggml_compute_the_same(capsys, tiny_cases, monkeypatch, v_in_k):
    forms = ("torch gqa", "torch expanded", "torch math")
    sizes = attention_sizes(d_k=64, d_v=32, n_kv=64, v_in_k=v_in_k)
    if v_in_k:
        sizes["n_head_kv"] = 1
    attention = Case("attention", "attention", {**sizes, "torch": forms}, ("fma",), 1.0)
    products = [
        Case(
            f"gemm {qtype}", "gemm",
            dict(qtype=qtype, rows=64, columns=512, n=20, copies=3), ("int8 dot",), 1.0,
        )
        for qtype in ("Q2_K", "Q6_K", "IQ4_NL", "Q8_0")
    ]  # fmt: skip
    dequantize = [
        Case(
            f"dequantize {qtype}", "dequantize",
            dict(qtype=qtype, rows=9, columns=512, copies=1), ("fill",), 1.0,
        )
        for qtype in ("F16", "BF16", "Q3_K", "Q4_K")
    ]  # fmt: skip
    monkeypatch.setattr(versus_cases, "CASES", (*dequantize, *products, attention))
    document = vs(capsys, "torch,ggml", "-r", "1", "-t", "1,2")
    for case in document["cases"]:
        names = {column["name"] for column in case["columns"]}
        assert "ggml" in names and not any(column["wrong"] for column in case["columns"])
        assert all("no repacked form" in note for note in case["notes"])
    assert set(forms) <= names


def test_check_turns_a_missed_bar_into_an_exit_code(capsys, tiny_cases):
    vs(capsys, "gguf", "-r", "1", "-t", "1", "--only", "dequantize", "--check", code=1)
    vs(capsys, "numpy", "-r", "1", "-t", "1", "--only", "attention", "--check", code=0)


def test_tables_say_what_is_missing(capsys, tiny_cases, monkeypatch, tmp_path):
    argv = ["bench", "--vs", "gguf,numpy,torch", "-r", "1", "-t", "2", "--only", "dequantize"]
    # shadows torch where it is installed
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    documents = []
    print_tables = versus_report.print_tables
    monkeypatch.setattr(
        versus_report,
        "print_tables",
        lambda document, with_bars: documents.append(document) or print_tables(document, with_bars),
    )
    assert main([*argv, "--check"]) == 1
    text = capsys.readouterr().out
    print_tables(documents[0], with_bars=False)
    without = capsys.readouterr().out
    assert "MISSED" not in without and " bar" not in without and "bars" not in without
    assert "torch: not installed; pip install torch" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| tiny")]
    assert "MISSED" in row and "x gguf < 1e+09" in row and "not measured: x ggml" in row
    assert "bars: 0 met, 1 missed, 1 not measured" in text


@pytest.mark.parametrize(
    "argv, message",
    [
        (["bench", "--vs", "gguf", "--only", "nothing"], "no case has 'nothing' in its name"),
        (["bench", "--only", "dequantize"], "belong to --vs"),
        (["bench", "--check"], "belong to --vs"),
    ],
)
def test_bad_use(capsys, argv, message):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_peer_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--vs", "gguf,mkl"])
    assert "'mkl' is not one of torch, ggml, gguf, numpy, ik" in capsys.readouterr().err


# ---------------------------------------------------------------- comparison and verdicts


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_a_wrong_result_is_not_measured(tiny_cases, wrong):
    trial = versus.Trial(DEQUANTIZE, None, [1], 1, 0, None)
    column = versus.Column("ggml", "ggml")
    expected = np.linspace(-1, 1, 100, dtype=np.float32)
    trial._hold(column, expected.copy(), expected)
    assert column.error == 0 and not column.wrong
    values = expected.copy()
    values[99] = wrong
    trial._hold(column, values, expected)
    assert "differs from ours" in column.wrong and "WRONG: ggml" in trial.notes[0]
    short = versus.Column("ggml", "ggml")
    trial._hold(short, expected[:7], expected)
    assert "7 sampled values, ours 100" in short.wrong


def result(bars, columns, floor=None):
    """A measured case with 2 threads: {name: (seconds, info)} or with a third item, why wrong."""
    return dict(
        name="case",
        kind="attention",
        sizes={},
        limits=("fma",),
        floor=floor,
        work=10.0,
        bars=[Case("x", "x", {}, bars=(bar,)).to_dict()["bars"][0] for bar in bars],
        notes=[],
        columns=[
            dict(name=name, seconds={2: seconds}, info=info, wrong="".join(wrong))
            for name, (seconds, info, *wrong) in columns.items()
        ],
    )


def judged(*bars, floor=None, **columns):
    base = {
        "ours": ([1.0, 2.0, 4.0], dict(scratch_bytes=100)),
        "ours f16": ([0.5, 1.0, 1.0], {}),
        "torch gqa": ([3.0, 3.0, 3.0], {}),
        "torch expanded": ([2.0, 5.0, 6.0], {}),
        "fma: slow": ([9.0, 9.0, 9.0], dict(limit="fma", work=20.0)),
        "fma: fast": ([1.0, 1.0, 1.0], dict(limit="fma", work=20.0)),
    }
    (judged_case,) = versus_report.judge([result(bars, {**base, **columns}, floor)])
    (row,) = judged_case["rows"]
    return judged_case, row


def test_ratios_are_taken_round_by_round_against_the_fastest_form():
    bar = Bar("speed", ("torch gqa", "torch expanded"), 1.5, goal=1.6)
    case, row = judged(bar, Bar("speed", ("torch gqa",), 3.0, ours="ours f16"))
    # gqa has the lower median, 3 against 5: 3/1, 3/2, 3/4
    assert row["ratios"]["torch gqa"] == dict(median=1.5, least=0.75, most=3.0, n_rounds=3)
    first, second = row["bars"]
    assert (first["value"], first["met"], first["reaches_goal"]) == (1.5, True, False)
    assert first["text"] == "x torch gqa"
    assert (second["value"], second["met"]) == (3.0, True)
    assert second["text"] == "x torch gqa (ours f16)"
    assert not versus_report.is_missed(dict(cases=[case]))


def test_a_missed_bar_says_what_its_floor_would_allow():
    bars = Bar("speed", ("torch gqa",), 7.0), Bar("limit", ("fma",), 0.5), Bar("scratch", (), 2)
    _, row = judged(*bars, floor="fma")  # ours reach 0.25 of it
    speed, limit, scratch = row["bars"]
    assert (speed["most"], limit["most"]) == (6.0, 1.0) and "most" not in scratch
    assert versus_report._bar_cell([speed]) == "MISSED 1.50 x torch gqa < 7 (floor: 6.00)"
    assert "most" not in judged(bars[0], Bar("speed", ("torch gqa",), 9.0))[1]["bars"][1]
    of_f16 = Bar("speed", ("torch gqa",), 9.0, ours="ours f16")
    assert "most" not in judged(of_f16, floor="fma")[1]["bars"][0]


def test_the_roofline_is_the_fastest_way_to_a_limit():
    case, row = judged(Bar("limit", ("fma",), 0.5))
    assert row["limits"]["fma"] == dict(column="fma: fast", rate=20.0)
    # our rates 10, 5, 2.5 of 20
    assert row["roofline"]["fma"] == dict(median=0.25, least=0.125, most=0.5)
    assert row["bars"][0]["met"] is False and versus_report.is_missed(dict(cases=[case]))
    assert "fma: fast" not in row["ratios"]


@pytest.mark.parametrize("bound, met", [(100, True), (99, False)])
def test_scratch_is_at_most(bound, met):
    _, row = judged(Bar("scratch", (), bound))
    assert row["bars"][0]["met"] is met and row["bars"][0]["value"] == 100


def test_bars_hold_for_their_number_of_threads_only():
    _, row = judged(Bar("scratch", (), 1, threads=(1,)), Bar("scratch", (), 1, threads=(2,)))
    assert len(row["bars"]) == 1


def test_without_a_measurement_a_bar_is_neither_met_nor_missed():
    case, row = judged(Bar("speed", ("ggml",), 2.0), ggml=([9.0] * 3, {}, "differs"))
    assert row["bars"][0]["met"] is None and "ggml" not in row["ratios"]
    assert versus_report.is_missed(dict(cases=[case]))  # a wrong result is worse than a slow one
    case, row = judged(Bar("speed", ("ggml",), 2.0))
    assert row["bars"][0]["met"] is None and not versus_report.is_missed(dict(cases=[case]))


# ---------------------------------------------------------------- start-up


def test_importing_is_timed_in_a_fresh_process():
    (case,) = [case for case in CASES if case.name == "startup import"]
    (judged_case,) = versus_report.judge([versus_startup.measure(case, 1, 1)])
    imported, called = judged_case["rows"]
    assert 0 < imported["seconds"] < 60 and len(imported["all_seconds"]) == 1
    assert "numba" not in imported["modules"] and "numba" in called["modules"]
    assert [bar["what"] for bar in judged_case["bars"]] == ["seconds", "imports"]
    assert imported["bars"][1]["met"] is True and called["bars"] == []


def test_only_the_outermost_kernel_is_counted():
    recorder = first_calls.Recorder()
    first_calls.event.register("numba:compile", recorder)
    try:

        @numba.njit
        def inner(x):
            return x + 1

        @numba.njit
        def outer(x):
            return inner(x) * 2

        assert outer(3) == 8
        ((name, seconds),) = recorder.take()
        assert name.endswith("outer") and seconds > 0
        assert recorder.take() == []
    finally:
        first_calls.event.unregister("numba:compile", recorder)


def test_first_calls_cover_every_format():
    names = [name for name, _ in first_calls._calls()]
    for block in quant.FORMATS.values():
        assert f"dequantize {block.name}" in names and f"matmul {block.name}, 20 rows" in names
    assert len(set(names)) == len(names)


def test_the_register_loop_matches_the_cpu():
    assert limits._ACCUMULATORS == (12 if simd.LEVEL == "avx512" else 6)
