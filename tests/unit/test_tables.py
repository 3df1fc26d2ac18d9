"""Tables fit the terminal: columns are folded or said once, and no number is ever broken."""

import random
import secrets
import sys

import pytest

from tools import tables
from tools.cli import build_parser, main


def lines_of(capsys, monkeypatch, width, call, *args, **options):
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    call(*args, **options)
    return capsys.readouterr().out.splitlines()


def is_of_table(line):
    return line.startswith("|")


def test_any_table_fits_any_width_and_keeps_its_numbers(capsys, monkeypatch):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(12):
        n_columns, n_rows = rng.randrange(1, 14), rng.randrange(1, 6)
        columns = [("name", "left")]
        columns += [(rng.choice(["MiB", "context", "K, V"]), "right") for _ in range(n_columns)]
        names = ["".join(rng.choices("abc de", k=rng.randrange(1, 50))) for _ in range(n_rows)]
        rows = [
            [name, *(f"{rng.randrange(10 ** rng.randrange(1, 9)):,}.25" for _ in range(n_columns))]
            for name in names
        ]
        for width in (60, 80, 120, None):
            lines = lines_of(capsys, monkeypatch, width, tables.print_table, columns, rows)
            table = [line for line in lines if is_of_table(line)]
            assert all(len(line) <= (width or 10**6) for line in table)
            cells = [cell.strip() for line in table for cell in line.split("|")]
            told = " ".join(line for line in lines if not is_of_table(line))
            for row in rows:
                assert all(cell in cells or f" {cell}" in told for cell in row[1:])
            if width is None:
                assert len(table) == 2 + n_rows


def test_what_all_rows_share_is_said_once(capsys, monkeypatch):
    columns = [("name", "left"), ("amb", "right"), *((f"column {i}", "right") for i in range(4))]
    rows = [
        [name, "64", *(str(10**9 + i) for i in range(n, n + 4))] for n, name in enumerate("xyz")
    ]
    lines = lines_of(capsys, monkeypatch, 60, tables.print_table, columns, rows)
    assert lines[0] == "in all rows: amb 64"
    assert not any("amb" in line for line in lines[1:])
    wide = lines_of(capsys, monkeypatch, None, tables.print_table, columns, rows)
    assert "amb" in wide[0] and len(wide) == 5


def test_folded_tables_begin_with_what_tells_rows_apart(capsys, monkeypatch):
    columns = [("n_kv", "right"), ("amb", "right"), *((f"column {i}", "right") for i in range(9))]
    rows = [[str(n), str(amb), *(str(10**9 + n + amb + i) for i in range(9))]
            for n in (1, 2) for amb in (3, 4)]  # fmt: skip
    lines = lines_of(capsys, monkeypatch, 80, tables.print_table, columns, rows, n_keys=2)
    heads = [line for line in lines if "n_kv" in line]
    assert len(heads) > 1 and all(line.startswith("| n_kv | amb |") for line in heads)


def tables_of(argv, monkeypatch):
    """What a command gives to `print_table`, call by call: some plan for seconds, whatever the width."""
    calls, real = [], tables.print_table
    build_parser()  # imports every subcommand

    def record(columns, rows, *args):
        calls.append((list(columns), [tuple(row) for row in rows], *args))

    with monkeypatch.context() as patch:
        for name, module in sorted(sys.modules.items()):
            if name.startswith("tools") and getattr(module, "print_table", None) is real:
                patch.setattr(module, "print_table", record)
        main(argv)
    return calls


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", "deepseek-r1", "-amb", "64,256", "-ub", "512,2048", "-t", "1"],
        ["plan", "deepseek-r1", "--type", "Q2_K", "--vram", "24G", "--n-gpu", "15", "-c", "4096"],
        ["plan", "deepseek-r1", "--vram", "24G", "--engine", "ik", "-c", "4096", "-ub", "512"],
        ["make-gguf", "deepseek-r1", "none.gguf", "--type", "Q2_K", "--dry-run"],
    ],
    ids=" ".join,
)
def test_the_commands_tables_fit(capsys, monkeypatch, argv):
    calls = tables_of(argv, monkeypatch)
    for width in (80, 120, None):
        for call in calls:
            lines = lines_of(capsys, monkeypatch, width, tables.print_table, *call)
            table = [line for line in lines if is_of_table(line)]
            assert table and all(len(line) <= (width or 10**6) for line in table)
    assert calls


def test_many_rows_that_cannot_run_are_one_line(capsys, monkeypatch):
    argv = [
        "plan",
        "-c",
        "163840",
        "-ub",
        "512,2048",
        "-amb",
        "64,128,256",
        "--method",
        "steps,auto",
    ]
    lines = lines_of(capsys, monkeypatch, 80, main, argv)
    (line,) = [line for line in lines if line.startswith("cannot run")]
    assert "6 rows need a larger -amb" in line and "1280.00 MiB" in line


def test_no_rows_beyond_the_models_context(capsys, monkeypatch):
    lines = lines_of(capsys, monkeypatch, None, main, ["plan", "llama-8b", "-t", "1"])
    contexts = {line.split("|")[1].strip() for line in lines if is_of_table(line)}
    assert {"8192", "16000", "24000"} <= contexts and "163000" not in contexts
