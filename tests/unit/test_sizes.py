import numpy as np
import pytest

from lowlevel.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("256MiB", 256 * 2**20),
        ("256 mib", 256 * 2**20),
        (" 1.5 GiB ", 3 * 2**29),
        ("64MB", 64_000_000),
        ("2kb", 2000),
        ("1KiB", 1024),
        ("3TiB", 3 * 2**40),
        ("24G", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5 gi", 3 * 2**29),
        ("512m", 512 * 2**20),
        ("4096", 4096),
        ("4096b", 4096),
        ("0", 0),
        ("0.3KiB", 307),
        (f"{2**63 - 1}", 2**63 - 1),  # whole numbers do not pass through a float
        (f"{2**53 + 1}KiB", (2**53 + 1) * 1024),
        (12345, 12345),
        (1.5 * 2**30, 3 * 2**29),
        (np.int64(7), 7),
        (np.float32(8.0), 8),
    ],
)
def test_sizes_are_exact_bytes(text, n_bytes):
    size = parse_size(text)
    assert size == n_bytes
    assert type(size) is int


@pytest.mark.parametrize(
    "size",
    ["", "MiB", "-1", "1 PiB", "1e3", "nan", "0x10", "1,5GiB", "1.GiB", "٣MiB", "1 MiB 2", -1, -0.5]
    + [float("nan"), float("inf"), np.float64("-inf"), 2**64, 10**400, "9" * 400, "16777216TiB"],
)
def test_what_is_no_size_is_refused_by_name(size):
    with pytest.raises(ValueError, match="budget: give bytes"):
        parse_size(size)


@pytest.mark.parametrize("size", [None, True, b"1", [1], 1j])
def test_wrong_types_are_refused_by_name(size):
    with pytest.raises(TypeError, match="amb: give bytes"):
        parse_size(size, name="amb")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1280 * 2**20, "1.25 GiB"),
        (3 * 2**50, "3072.00 TiB"),
    ],
)
def test_format_size(n_bytes, text):
    assert format_size(n_bytes) == text
