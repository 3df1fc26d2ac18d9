"""``kqcap bench --device``, tiny, on the simulator."""

import json

import pytest

from tools.cli import main

TINY = ["bench", "--device", "cudasim", "-p", "70", "-ub", "3", "-amb", "1", "-r", "1"]


@pytest.mark.parametrize("shape", ["GQA", "Q8_0", "16 heads float32"])
def test_rows(shape, capsys):
    assert main([*TINY, "--only", shape, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert shape in row["shape"] and row["n_kv"] == 70 and len(row["seconds"]) == 1
    assert row["scratch"] <= 2**20 and 0 < row["error"] < 2e-3


def test_what_there_is_not_is_named(capsys):
    assert main([*TINY, "--only", "512/512"]) == 2
    assert "none of 192/128 128 heads" in capsys.readouterr().err
    assert main([*TINY, "--vs", "gguf"]) == 2
