"""README: its links lead somewhere, and every guarantee names a test that exists. CONTRIBUTING: so do its paths."""

import argparse
import importlib.util
import pathlib
import re
import shlex

import pytest

from quant.formats import FORMATS
from tools import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[([^\]]*)\]\(([^)]+)\)")
MOST_PICTURE_BYTES = 64 * 1024


def guarantees():
    """(what, cell with its tests) of each line of the table."""
    section = README.split("\n## Guarantees\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [(what.strip(), tests) for what, tests in rows[1:]]


def test_links_to_files():
    paths = [path for _, path in LINK.findall(README) if "://" not in path]
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_files_that_contributing_names():
    """Links, and paths in backticks; NAME and * stand for any."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    links = [path for _, path in LINK.findall(text)]
    floors = r"`((?:lowlevel|quant|tools|tests|\.ci)/[\w.*/-]+)`"
    named = [path for path in re.findall(floors, text) if "NAME" not in path]
    assert len(links) >= 2 and len(named) >= 20
    for path in (*links, *named):
        assert any(ROOT.glob(path.rstrip("/"))), path


def test_there_are_guarantees():
    assert len(guarantees()) > 10


@pytest.mark.parametrize(("what", "cell"), guarantees())
def test_each_guarantee_names_tests_that_exist(what, cell):
    links = LINK.findall(cell)
    assert links, what
    for name, path in links:
        text = (ROOT / path).read_text(encoding="utf-8")
        found = name == pathlib.Path(path).name or re.search(
            rf"^(def|class) {re.escape(name)}\b|^{re.escape(name)} = ", text, re.MULTILINE
        )
        assert found, f"{name} is not in {path}"


def test_one_small_picture():
    pictures = [path for _, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)]
    assert pictures == ["tests/pictures/timeline.png"]
    assert (ROOT / pictures[0]).stat().st_size <= MOST_PICTURE_BYTES


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_python_block_runs_on_what_a_line_above_made(tmp_path, monkeypatch):
    (make,) = [block for block in blocks("sh") if block.startswith(".venv/bin/kqcap make-gguf")]
    first = blocks("python")[0]
    assert README.index(make) < README.index(first)
    monkeypatch.chdir(tmp_path)
    command, *argv = shlex.split(make)
    # the same, but for what the block does not look at, and shorter
    assert command == ".venv/bin/kqcap" and cli.main([*argv, "--only", "attention"]) == 0
    for size, smaller in (
        ("16384", "512"),
        ("(16, 2048", "(16, 64"),
        ("n_tokens=2048", "n_tokens=64"),
    ):
        assert size in first
        first = first.replace(size, smaller)
    exec(compile(first, "README.md", "exec"), {})


def test_the_supported_types_are_listed():
    (names,) = re.findall(r"Types that are decoded[^:]*:\s([^.]*)\.", README)
    found = re.findall(r"\b[A-Z]+[0-9]+[A-Z0-9_]*\b", names)
    assert sorted(found) == sorted(row.name for row in FORMATS.values())


def test_every_subcommand_has_json():
    def leaves(parser, name):
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for group in groups:
            for word, child in group.choices.items():
                yield from leaves(child, f"{name} {word}")
        if not groups:
            yield name, parser

    found = dict(leaves(cli.build_parser(), "kqcap"))
    assert len(found) > 10
    for name, parser in found.items():
        assert "--json" in parser._option_string_actions, name


def test_the_long_description_needs_no_files_beside_it():
    """On a package index links to files of the repository and its picture would lead nowhere."""
    spec = importlib.util.spec_from_file_location("kqcap_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.long_description()
    assert "](tests/" not in text and "![" not in text
    assert all("://" in path for _, path in LINK.findall(text))
    assert "test_double_free (`tests/unit/test_pool_misuse.py`)" in text
    assert "github.com/ikawrakow/ik_llama.cpp/pull/237)" in text
