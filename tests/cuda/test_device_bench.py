"""``kqcap bench --device``, tiny, on the simulator."""

import json

import pytest

from tools.bench.device_bars import judge
from tools.cli import main

TINY = ["bench", "--device", "cudasim", "-p", "70", "-ub", "3", "-amb", "1", "-r", "1"]


@pytest.mark.parametrize("shape", ["GQA", "heads Q8_0", "16 heads float32"])
def test_attention(shape, capsys):
    assert main([*TINY, "--only", shape, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["attention"]
    assert shape in row["shape"] and row["n_kv"] == 70 and len(row["seconds"]) == 1
    assert row["scratch"] <= 2**20 and 0 < row["error"] < 2e-3


@pytest.mark.parametrize(
    "section, n_rows, right",
    [
        ("dequantize Q2_K", 3, lambda row: row["wrong"] == 0),
        ("dequantize BF16", 3, lambda row: row["wrong"] == 0),
        ("concat", 6, lambda row: row["wrong"] == 0),
        ("matmul IQ4_NL", 2, lambda row: 0 < row["error"] < 0.04),
        ("experts Q6_K", 1, lambda row: 0 < row["error"] < 0.04),
    ],
)
def test_sections(section, n_rows, right, capsys):
    command = [
        "bench",
        "--device",
        "cudasim",
        "--log2-weights",
        "13",
        "-r",
        "1",
        "--json",
        "--check",
    ]
    assert main([*command, "--only", section]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document[section.split()[0]]
    assert len(rows) == n_rows and all(map(right, rows))
    assert document["ceilings"]["copy"] > 0 and document["date"] and document["gpu"] == "simulator"
    assert document["bars"] and all(bar["met"] for bar in document["bars"])


def test_what_is_missed_or_wrong_is_said():
    row = dict(shape="192/128 128 heads", n_tokens=2048, n_kv=163840, budget="64MiB", seconds=[0.1])
    row.update(tflops=100, error=1e-2, grown=0, first_grown=64 << 20)
    row.update(peers={"head split": [0.15], "math": "no memory"})
    memory = dict(what="dequantize Q2_K", to="float16", of_copy=0.9, wrong=1)
    document = dict(device="cuda:0", ceilings=dict(copy=4e12, product=4e14), attention=[row])
    document["dequantize"] = [memory, dict(memory, of_copy=0.8, wrong=0)]
    met = {bar["text"].split(":")[0] + f" {bar['bound']}": bar["met"] for bar in judge(document)}
    assert met == {
        "dequantize 0": False, "dequantize 0.85": False, "attention 0.002": False,
        "attention 192/128, 128 heads, n 163840, u 2048, 64 MiB 0.4": False,
        "attention 192/128, 128 heads, n 163840, u 2048, 64 MiB 2": False, "attention 0": True,
        "attention 4194304": False,
    }  # fmt: skip


def test_what_there_is_not_is_named(capsys):
    assert main([*TINY, "--only", "512/512"]) == 2
    assert "no case has '512/512' in its name; there are: ceilings" in capsys.readouterr().err
    assert main([*TINY, "--vs", "gguf"]) == 2
    assert main(["bench", "--log2-weights", "13"]) == 2
