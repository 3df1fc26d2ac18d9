"""README: its links lead somewhere, and every guarantee names a test that exists."""

import pathlib
import re

import pytest

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
