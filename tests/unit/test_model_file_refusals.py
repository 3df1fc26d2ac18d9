"""quant.open on what is no model file, and on headers that contradict themselves: what it says of each."""

import os

import gguf_bytes as gb
import numpy as np
import pytest

import quant
from quant.gguf.header import MAX_ARRAY_STRINGS, MAX_ENTRIES


def test_paths_that_are_no_model_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.gguf"):
        quant.open(tmp_path / "nowhere.gguf")
    with pytest.raises(quant.ModelFileError, match="a folder"):
        quant.open(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(quant.ModelFileError, match="not a regular file"):
        quant.open(tmp_path / "pipe.gguf")
    for content, message in (
        (b"", "empty file"),
        (b"GG", "begins with b'GG'"),
        (b"PK\3\4 zip", "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        path = tmp_path / "other.gguf"
        path.write_bytes(content)
        with pytest.raises(quant.ModelFileError, match=message) as caught:
            quant.open(path)
        assert str(path) in str(caught.value)
    with pytest.raises(TypeError):
        quant.open(3)


F32_ROW = gb.row("a", (4,), gb.F32_TENSOR, 0)
ALIGN = "general.alignment"
BIG = 2**63
CORRUPT = {
    "version 1": (gb.header([], [], version=1), "GGUF version 1; versions 2 and 3"),
    "version 4": (gb.header([], [], version=4), "GGUF version 4"),
    "big endian": (gb.header([], [], version=3 << 24), "big-endian GGUF"),
    "tensor count": (gb.header([], [], n_tensors=BIG), f"claims {BIG} tensors.*{MAX_ENTRIES}"),
    "metadata count": (gb.header([], [], n_metadata=BIG), f"claims {BIG} metadata entries"),
    "missing tensor": (gb.header([], [F32_ROW], n_tensors=2), "truncated or corrupt.*tensor 1"),
    "missing entry": (gb.header([], [], n_metadata=1), "truncated or corrupt.*metadata entry 0"),
    "duplicate key": (gb.header([gb.entry("k", gb.U8, 1)] * 2, []), "'k' is there twice"),
    "duplicate name": (gb.header([], [F32_ROW] * 2), "two tensors are named 'a'"),
    "key not UTF-8": (gb.header([gb.entry(b"\xff", gb.U8, 1)], []), "not valid UTF-8"),
    "name not UTF-8": (gb.header([], [gb.row(b"a\xc3", (4,), 0, 0)]), "not valid UTF-8"),
    "key length": (gb.header([b"\xff" * 8 + b"k"], []), "is 18446744073709551615 bytes long"),
    "text length": (
        gb.header([gb.text("k") + gb.scalar(gb.U32, gb.STRING) + gb.scalar(gb.U64, BIG)], []),
        f"'k' takes {BIG} bytes",
    ),
    "value type": (gb.header([gb.text("k") + gb.scalar(gb.U32, 13)], []), "unknown value type 13"),
    "item type": (
        gb.header(
            [gb.text("k") + gb.scalar(gb.U32, gb.ARRAY) + gb.scalar(gb.U32, 99) + bytes(8)], []
        ),
        "unknown item type 99",
    ),
    "nested arrays": (
        gb.header(
            [gb.text("k") + gb.scalar(gb.U32, gb.ARRAY) + gb.scalar(gb.U32, gb.ARRAY) + bytes(8)],
            [],
        ),
        "array of arrays",
    ),
    "array length": (
        gb.header(
            [
                gb.text("k")
                + gb.scalar(gb.U32, gb.ARRAY)
                + gb.scalar(gb.U32, gb.U64)
                + gb.scalar(gb.U64, 2**61)
            ],
            [],
        ),
        f"takes {2**64} bytes",
    ),
    "strings": (
        gb.header(
            [
                gb.text("k")
                + gb.scalar(gb.U32, gb.ARRAY)
                + gb.scalar(gb.U32, gb.STRING)
                + gb.scalar(gb.U64, 2**61)
            ],
            [],
        ),
        f"at most {MAX_ARRAY_STRINGS}",
    ),
    "alignment 0": (gb.header([gb.entry(ALIGN, gb.U32, 0)], []), "not a power of two"),
    "alignment 24": (gb.header([gb.entry(ALIGN, gb.U32, 24)], []), "not a power of two"),
    "alignment u64": (gb.header([gb.entry(ALIGN, gb.U64, 32)], []), "not a u32"),
    "huge alignment": (gb.header([gb.entry(ALIGN, gb.U32, 2**31)], [F32_ROW]), "the file ends at"),
    "no dimensions": (gb.header([], [gb.row("a", (), gb.Q8_0_TENSOR, 0)]), "1 columns.*Q8_0"),
    "five dimensions": (gb.header([], [gb.row("a", (1,) * 5, 0, 0)]), "has 5 dimensions"),
    "2**31 dimensions": (gb.header([], [gb.row("a", (1,), 0, 0, 2**31)]), "has 2147483648 dim"),
    "empty, far away": (gb.header([], [gb.row("a", (4, 0), 0, 2**20)]), "the file ends at"),
    "empty, 2**63": (gb.header([], [gb.row("a", (BIG, 0), 0, 0)]), r"more than 2\*\*60"),
    "product 2**64": (gb.header([], [gb.row("a", (2**32, 2**32), 0, 0)]), r"more than 2\*\*60"),
    "product 2**256": (gb.header([], [gb.row("a", (BIG,) * 4, 777, 0)]), r"more than 2\*\*60"),
    "product 2**60": (gb.header([], [gb.row("a", (2**30, 2**30), 0, 0)]), "the file ends at"),
    "columns": (gb.header([], [gb.row("a", (48,), gb.Q8_0_TENSOR, 0)]), "48 columns.*Q8_0"),
    "misaligned": (gb.header([], [gb.row("a", (4,), 0, 8)]), "not a multiple of the alignment 32"),
    "offset": (gb.header([], [gb.row("a", (4,), 0, BIG)]), "the file ends at"),
    "overlap": (
        gb.header([], [gb.row("a", (16,), 0, 0), gb.row("b", (4,), 0, 32)]),
        "tensors 'a' and 'b' overlap",
    ),
    "same place": (gb.header([], [F32_ROW, gb.row("b", (4,), 777, 0)]), "overlap"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_files(tmp_path, case):
    data, message = CORRUPT[case]
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(gb.padded(data) + bytes(64) if "missing" not in case else data)
    with pytest.raises(quant.ModelFileError, match=message) as caught:
        quant.open(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_text_that_is_not_utf8_is_refused_when_asked_for(tmp_path):
    entries = [
        gb.entry("one", gb.STRING, b"\xff\xfe"),
        gb.entry("two", (gb.ARRAY, gb.STRING), ["fine", b"\xc3\x28"]),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(gb.header(entries, []))
    model = quant.open(path)
    with pytest.raises(quant.ModelFileError, match="'one' is not valid UTF-8"):
        model.metadata["one"]
    with pytest.raises(quant.ModelFileError, match="item 1 of metadata 'two' is not valid UTF-8"):
        model.metadata["two"]


def test_version_2_and_a_missing_last_padding(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gb.padded(gb.header([], [F32_ROW], version=2)) + b"\0\0\x80\x3f" * 4)
    np.testing.assert_array_equal(quant.open(path)["a"].data.view(np.float32), 1.0)


@pytest.mark.parametrize("path", [None, 5, ["model.gguf"]])
def test_a_path_that_is_none_is_named(path):
    with pytest.raises(TypeError, match=f"path: expected .* got {type(path).__name__}"):
        quant.open(path)
