"""quant.Imatrix: importance matrices in llama.cpp's two forms, and files that are none or lie."""

import struct

import gguf
import numpy as np
import pytest

from quant import Imatrix, ModelFileError

ENTRIES = {"blk.0.attn_q.weight": (1, 64, [8]), "blk.0.ffn_up_exps.weight": (3, 32, [4, 0, 6])}


def sums_of(rng):
    return {
        name: rng.random((n, columns), np.float32) * 9 for name, (n, columns, _) in ENTRIES.items()
    }


def write_gguf(path, sums, kind="imatrix", counts=None, dtype=np.float32):
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.astype(dtype))
        numbers = counts or ENTRIES[name][2]
        writer.add_tensor(f"{name}.counts", np.array(numbers, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def old_bytes(sums, n_sums=8, end=True):
    data = struct.pack("<i", len(sums))
    for name, values in sums.items():
        data += (
            struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_sums, values.size)
        )
        data += values.astype("<f4").tobytes()
    if end:
        data += struct.pack("<ii", 8, len(b"wiki.txt")) + b"wiki.txt"
    return data


@pytest.fixture
def sums():
    return sums_of(np.random.default_rng(3))


def test_means_of_a_gguf_file(tmp_path, sums):
    """Experts that no token met count as 1 in all columns."""
    write_gguf(tmp_path / "imatrix.gguf", sums)
    imatrix = Imatrix(tmp_path / "imatrix.gguf")
    assert list(imatrix) == list(ENTRIES) and imatrix.datasets == ("wiki.txt",)
    q, experts = imatrix.values()
    np.testing.assert_array_equal(q, sums["blk.0.attn_q.weight"] / np.float32(8))
    np.testing.assert_array_equal(experts[1], np.ones(32))
    np.testing.assert_array_equal(experts[2], sums["blk.0.ffn_up_exps.weight"][2] / np.float32(6))
    assert imatrix.of("blk.0.attn_q.weight", (5, 64)).shape == (64,)
    assert imatrix.of("blk.0.ffn_up_exps.weight", (3, 7, 32)).shape == (3, 32)
    assert imatrix.of("output.weight", (5, 64)) is None
    with pytest.raises(ValueError, match=r"has 64 values; a weight \(5, 32\) needs 32"):
        imatrix.of("blk.0.attn_q.weight", (5, 32))


@pytest.mark.parametrize("end", [True, False])
def test_means_of_the_older_form(tmp_path, sums, end):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(old_bytes(sums, end=end))
    imatrix = Imatrix(path)
    assert imatrix.datasets == (("wiki.txt",) if end else ())
    expected = sums["blk.0.ffn_up_exps.weight"] / np.float32(8)
    found = imatrix.of("blk.0.ffn_up_exps.weight", (3, 7, 32))
    np.testing.assert_array_equal(found, expected)
    assert not found.flags.writeable


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path, sums):
    """Nothing but ModelFileError, whatever the bytes."""
    path, rng = tmp_path / "imatrix.dat", np.random.default_rng(0)
    whole = old_bytes({"blk.0.attn_q.weight": sums["blk.0.attn_q.weight"]})
    write_gguf(tmp_path / "imatrix.gguf", sums)
    for data in (whole, (tmp_path / "imatrix.gguf").read_bytes()):
        cuts = [data[:n] for n in rng.integers(0, len(data), 60)]
        changed = []
        for at in rng.integers(0, min(len(data), 600), 200):
            other = bytearray(data)
            other[at] ^= 1 << int(rng.integers(8))
            changed.append(bytes(other))
        for some in (*cuts, *changed):
            path.write_bytes(some)
            try:
                Imatrix(path)
            except ModelFileError:
                pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"\0", "the number of entries takes 4 bytes"),
        (struct.pack("<i", -1), "number of entries is -1"),
        (struct.pack("<ii", 1, 2**30), "the length of the name of entry 0 is 1073741824"),
        (old_bytes({"a": np.ones(4)}) + b"x", "1 bytes follow its end"),
        (old_bytes({"a": np.ones(4)})[:20], "the values of 'a' takes 16 bytes"),
        (old_bytes({"a": np.array([1, np.nan])}), "'a' has values that are negative or not finite"),
        (old_bytes({"a": np.array([1, -1.0])}), "'a' has values that are negative"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, data, message):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        Imatrix(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "model"}, "general.type is 'model', no importance matrix"),
        ({"counts": [1, 2]}, "has sums of 1 matrices and 2 counts"),
        ({"dtype": np.float16}, "is F16, not F32"),
    ],
)
def test_gguf_files_that_are_none_are_refused(tmp_path, sums, options, message):
    write_gguf(tmp_path / "imatrix.gguf", sums, **options)
    with pytest.raises(ModelFileError, match=message):
        Imatrix(tmp_path / "imatrix.gguf")
