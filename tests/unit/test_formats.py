"""The table of block formats, held against the gguf package's sizes and ggml's names."""

import zlib

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quant.formats import FORMATS, KV_FORMATS, BlockFormat, block_format
from quant.grids import EVEN_SIGNS, grid

NAMES = tuple(
    "F32 F16 BF16 Q8_0 Q4_0 IQ4_NL Q2_K Q3_K Q4_K Q6_K IQ4_XS Q4_1 Q5_0 Q5_1 Q5_K MXFP4 "
    "IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S IQ1_M TQ1_0 TQ2_0 NVFP4 Q1_0 Q2_0".split()
)


def test_table_has_the_promised_types():
    assert tuple(row.name for row in FORMATS.values()) == NAMES
    assert tuple(row.name for row in KV_FORMATS) == (
        "Q8_0",
        "Q4_0",
        "IQ4_NL",
        "Q4_1",
        "Q5_0",
        "Q5_1",
    )


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_gguf_package(name):
    row = block_format(name)
    of_ggml = {"Q2_0": (64, 18)}.get(name) or GGML_QUANT_SIZES[row.qtype]  # which gguf 0.19 lacks
    assert (row.block_weights, row.block_bytes) == of_ggml
    assert row.is_float == (name in ("F32", "F16", "BF16"))


@pytest.mark.parametrize("name", NAMES)
def test_fields_fill_the_block_without_gaps(name):
    row = block_format(name)
    end = 0
    for field in row.fields:
        assert field.offset == end
        end += field.n_bytes
        assert row.field(field.name) is field
    assert end == row.block_bytes == row.block_dtype.itemsize


def test_block_dtype_reads_the_fields():
    block = np.arange(84, dtype=np.uint8)
    record = block.view(block_format("Q2_K").block_dtype)[0]
    assert record["scales"].tolist() == list(range(16))
    assert record["qs"].tolist() == list(range(16, 80))
    assert record["d"].tobytes() == bytes([80, 81]) and record["dmin"].tobytes() == bytes([82, 83])


@pytest.mark.parametrize(
    "name, n_entries, per_entry, checksum",
    [
        ("IQ2_XXS", 256, 8, 0x9924FF02),
        ("IQ2_XS", 512, 8, 0xFA1E1BFD),
        ("IQ2_S", 1024, 8, 0x25AE5BF1),
        ("IQ3_XXS", 256, 4, 0x07BA9ED0),
        ("IQ3_S", 512, 4, 0xF576E4F3),
        ("IQ1_S", 2048, 8, 0xB85E6CCF),
    ],
)
def test_grids_are_what_they_were(name, n_entries, per_entry, checksum):
    """They come out of attributes of the gguf package's classes, packed as they are there now."""
    table = grid(name)
    assert table.shape == (n_entries, per_entry) and table.dtype == np.int8
    assert zlib.crc32(table.tobytes()) == checksum
    assert {row.grid for row in FORMATS.values()} >= {name}


def test_even_signs():
    assert all(bits.bit_count() % 2 == 0 and bits & 127 == i for i, bits in enumerate(EVEN_SIGNS))


def test_unknown_field():
    with pytest.raises(KeyError, match=r"Q8_0 has no field 'dmin'.*'d', 'qs'"):
        block_format("Q8_0").field("dmin")


def test_lookup_by_enum_name_and_row():
    row = FORMATS[GGMLQuantizationType.Q2_K]
    assert isinstance(row, BlockFormat)
    for qtype in (GGMLQuantizationType.Q2_K, "Q2_K", "q2_k", row):
        assert block_format(qtype) is row


@pytest.mark.parametrize("qtype", ["Q8_K", "q9_9", "", GGMLQuantizationType.Q8_1, "IQ2_K"])
def test_unsupported_types_are_refused_with_the_list(qtype):
    with pytest.raises(
        ValueError, match=rf"qtype: .*supported: F32, F16, BF16, Q8_0, .*, {NAMES[-1]}$"
    ):
        block_format(qtype)


@pytest.mark.parametrize("qtype", [10, None, 2.0, np.float32])
def test_what_is_no_type_is_refused(qtype):
    with pytest.raises(TypeError, match=r"qtype: expected .* got .*; supported: F32"):
        block_format(qtype)


@pytest.mark.parametrize("name", NAMES)
def test_row_sizes(name):
    row = block_format(name)
    for n_blocks in (0, 1, 7):
        columns = n_blocks * row.block_weights
        assert row.row_blocks(columns) == n_blocks
        assert row.row_bytes(columns) == n_blocks * row.block_bytes
        assert row.row_columns(n_blocks * row.block_bytes) == columns


@pytest.mark.parametrize(("name", "columns"), [("Q2_K", 192), ("Q8_0", 48), ("F32", -1)])
def test_widths_that_are_no_whole_blocks(name, columns):
    with pytest.raises(ValueError, match=f"columns: {name} .*multiple of .*; got {columns}"):
        block_format(name).row_bytes(columns)


def test_row_bytes_that_are_no_whole_blocks():
    with pytest.raises(ValueError, match=r"a block of Q4_0 has 18 bytes.*got 20"):
        block_format("Q4_0").row_columns(20)
