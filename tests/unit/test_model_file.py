"""quant.open: one file or parts, metadata, tensors; the gguf package is the oracle."""

import os
import resource
import secrets
import tracemalloc

import gguf
import gguf_bytes as gb
import numpy as np
import pytest

import quant
from quant.gguf.other_types import OTHER_NUMBERS, type_name

QTYPES = gguf.GGMLQuantizationType


@pytest.fixture
def rng(request):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def write_file(path, tensors, metadata=(), alignment=None, **split):
    """A GGUF file by the gguf package's writer. tensors: name -> (bytes array, qtype)."""
    writer = gguf.GGUFWriter(path, "llama", **split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (add, value) in dict(metadata).items():
        getattr(writer, f"add_{add}")(key, value)
    for name, (data, qtype) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(rng, n=7):
    """Tensors of several types and ranks, as raw blocks."""
    tensors = {}
    qtypes = (QTYPES.Q8_0, QTYPES.IQ4_NL, QTYPES.Q2_K, QTYPES.Q6_K, QTYPES.Q4_0)
    for index in range(n):
        qtype = qtypes[index % len(qtypes)]
        _, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        lead = tuple(rng.integers(1, 6, size=index % 4).tolist())
        row_bytes = int(rng.integers(1, 4)) * block_bytes
        data = rng.integers(0, 256, (*lead, row_bytes), dtype=np.uint8)
        tensors[f"blk.{index}.weight"] = (data, qtype)
    tensors["norm.weight"] = (rng.standard_normal(37).astype(np.float32), QTYPES.F32)
    tensors["half.weight"] = (rng.standard_normal((3, 5)).astype(np.float16), QTYPES.F16)
    return tensors


@pytest.mark.parametrize("alignment", [None, 8, 32, 64, 4096])
def test_tensors_equal_the_gguf_packages(tmp_path, rng, alignment):
    tensors = random_tensors(rng)
    path = write_file(tmp_path / "model.gguf", tensors, alignment=alignment)
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with quant.open(path) as model:
        assert list(model) == list(tensors) == list(oracle)
        assert len(model) == len(tensors)
        assert model.keys() == tensors.keys()
        for name, tensor in model.items():
            expected = oracle[name]
            assert tensor.qtype == expected.tensor_type
            assert tensor.shape == tuple(int(n) for n in expected.shape[::-1])
            np.testing.assert_array_equal(
                np.asarray(tensor.data).ravel(), expected.data.view(np.uint8).ravel()
            )
            info = model.tensor_info(name)
            assert (info.qtype, info.shape) == (tensor.qtype, tensor.shape)
            assert (info.offset, info.n_bytes) == (expected.data_offset, expected.n_bytes)
            assert info.path == str(path)
        assert model.n_bytes == sum(int(tensor.n_bytes) for tensor in oracle.values())
        assert sum(model.n_bytes_by_type.values()) == model.n_bytes
        assert model.n_bytes_by_type["F32"] == 37 * 4


def test_tensors_are_read_only_views_that_outlive_the_file(tmp_path, rng):
    tensors = random_tensors(rng)
    model = quant.open(os.fsencode(write_file(tmp_path / "model.gguf", tensors)))
    tensor = model["blk.1.weight"]
    assert not tensor.data.flags.writeable and not tensor.data.flags.owndata
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    np.testing.assert_array_equal(tensor.data.ravel(), tensors["blk.1.weight"][0].ravel())
    with pytest.raises(ValueError, match="closed"):
        model["blk.1.weight"]
    with pytest.raises(ValueError, match="closed"):
        model.metadata["general.architecture"]


METADATA = {
    "a.u8": ("uint8", 255),
    "a.i8": ("int8", -128),
    "a.u16": ("uint16", 65535),
    "a.i16": ("int16", -32768),
    "a.u32": ("uint32", 2**32 - 1),
    "a.i32": ("int32", -(2**31)),
    "a.u64": ("uint64", 2**64 - 1),
    "a.i64": ("int64", -(2**63)),
    "a.f32": ("float32", 0.5),
    "a.f64": ("float64", 0.1),
    "a.yes": ("bool", True),
    "a.no": ("bool", False),
    "a.text": ("string", "größer ▁ <｜begin▁of▁sentence｜>"),
    "a.array": ("array", [3, -4, 5]),
    "a.floats": ("array", [0.5, 0.25]),
    "a.flags": ("array", [True, False, True]),
    "a.texts": ("array", ["Ġt", "▁", "in"]),
}


def test_metadata_values(tmp_path):
    path = write_file(tmp_path / "model.gguf", {}, METADATA)
    model = quant.open(path)
    assert list(model.metadata) == ["general.architecture", *METADATA]
    assert len(model.metadata) == len(METADATA) + 1
    for key, (kind, value) in METADATA.items():
        found = model.metadata[key]
        if kind == "array":
            assert list(found) == value
        else:
            assert found == value and type(found) is type(value)
        assert model.metadata[key] is found  # decoded once
    assert "a.u8" in model.metadata and "a.u9" not in model.metadata
    assert model.metadata.get("a.u9") is None
    with pytest.raises(KeyError, match=r"no metadata key 'a\.u9'.*near it: 'a\.u8'"):
        model.metadata["a.u9"]
    assert len(model) == 0 and model.n_bytes == 0


def test_unknown_tensor_name(tmp_path, rng):
    model = quant.open(write_file(tmp_path / "model.gguf", random_tensors(rng)))
    assert "blk.0.weight" in model and "blk.0.wait" not in model and 3 not in model
    with pytest.raises(KeyError, match=r"no tensor 'blk\.0\.wait'.*'blk\.0\.weight'"):
        model["blk.0.wait"]
    with pytest.raises(KeyError, match="no tensor"):
        model.tensor_info(["unhashable"])


def test_big_token_arrays_cost_only_a_walk(tmp_path):
    tokens = [f"token{index}" for index in range(129280)]
    path = write_file(tmp_path / "model.gguf", {}, {"tokenizer.ggml.tokens": ("array", tokens)})
    tracemalloc.start()
    try:
        model = quant.open(path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 2**17
    assert list(model.metadata["tokenizer.ggml.tokens"]) == tokens


def test_opening_does_not_read_the_tensors(tmp_path):
    n_bytes = 2**33  # a sparse file: reading it all would show in the resident memory
    header = gb.padded(gb.header([], [gb.row("big", (2**20, 2**11), gb.F32_TENSOR, 0)]))
    path = tmp_path / "big.gguf"
    path.write_bytes(header)
    os.truncate(path, len(header) + n_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensor = quant.open(path)["big"]
    assert tensor.data.nbytes == n_bytes and tensor.data[-1, -1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_types_that_cannot_be_read(tmp_path):
    rows = [
        gb.row("new", (64,), 4242, 0),
        gb.row("old", (8,), gb.F32_TENSOR, 64),
        gb.row("ik", (256, 2), 137, 96),  # two blocks of 76 bytes
        gb.row("ik.empty", (256, 0), 137, 256),
        gb.row("last", (5,), 399, 256),
    ]
    path = tmp_path / "model.gguf"
    tensors = bytes(range(256)) + bytes(100)
    path.write_bytes(gb.padded(gb.header([], rows)) + tensors)
    model = quant.open(path)
    assert model.tensor_info("new").qtype == 4242
    sizes = {name: (model.tensor_info(name).n_bytes, model.tensor_info(name).size_known) for name in model}  # fmt: skip
    assert sizes == {
        "new": (64, False),
        "old": (32, True),
        "ik": (160, False),  # 152 and the padding
        "ik.empty": (0, True),
        "last": (100, False),  # up to the file's end
    }
    assert model.n_bytes_by_type == {"IQ2_K": 160, "Q8_K_R8": 100, "4242": 64, "F32": 32}
    assert model["old"].shape == (8,)
    assert model.tensor_bytes("ik").tobytes() == tensors[96:256]
    for name, said in (
        ("new", "4242, which"),
        ("ik", r"IQ2_K \(137, ik_llama.cpp's own\), which"),
        ("last", "Q8_K_R8 "),
    ):
        with pytest.raises(
            quant.ModelFileError, match=rf"'{name}' has the type {said}.*supported: .*Q2_K"
        ):
            model[name]
    with pytest.raises(ValueError, match=r"qtype: IQ2_K \(137, ik_llama.cpp's own\) is not supp"):
        quant.block_format("iq2_k")


def test_names_of_types_are_those_of_the_gguf_package():
    for number, name in map(reversed, OTHER_NUMBERS.items()):
        known = QTYPES.__members__.get(name)
        assert known is None or known == number, name
        if known is None:
            assert number not in list(QTYPES), name
        assert type_name(number) == name


@pytest.mark.parametrize("name", ["F64", "I8", "I16", "I32", "I64"])
def test_plain_numbers_open_as_arrays(tmp_path, rng, name):
    dtype = {"F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}[name]
    array = rng.integers(-100, 100, (3, 5)).astype(dtype)
    path = write_file(tmp_path / "model.gguf", {"ids": (array, QTYPES[name])})
    model = quant.open(path)
    found = model["ids"]
    assert type(found) is np.ndarray and found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable and not found.flags.owndata
    assert model.n_bytes_by_type == {name: array.nbytes}
    message = f"t: expected a QuantTensor, got an array of {array.dtype}, no weight"
    with pytest.raises(TypeError, match=message):
        quant.dequantize(found)
    with pytest.raises(TypeError, match=message):
        quant.matmul(np.ones((1, 5), np.float32), found)
    with pytest.raises(ValueError, match=f"qtype: {name} .{array.dtype} numbers, no weights. is"):
        quant.QuantTensor(found.view(np.uint8), name, (3, 5))


def test_empty_tensors_and_those_without_axes(tmp_path):
    """As llama.cpp takes them: nothing, and one number."""
    rows = [
        gb.row("a", (4,), gb.F32_TENSOR, 0),
        gb.row("none", (0,), gb.F32_TENSOR, 32),  # shares its place with the next one
        gb.row("scalar", (), gb.F32_TENSOR, 32),
        gb.row("scalar.ids", (), int(QTYPES.I32), 64),
        gb.row("no.rows", (32, 0), gb.Q8_0_TENSOR, 96),
        gb.row("no.columns", (0, 3, 2), gb.Q2_K_TENSOR, 96),
    ]
    data = gb.padded(gb.header([], rows)) + np.arange(17, dtype="<f4").tobytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data)  # ends at byte 68: where the last two lie nothing is
    model = quant.open(path)
    np.testing.assert_array_equal(quant.dequantize(model["a"]), [0, 1, 2, 3])
    np.testing.assert_array_equal(quant.dequantize(model["scalar"]), [8])
    assert model.tensor_info("scalar").shape == () and model["scalar.ids"].shape == ()
    assert model["scalar.ids"] == np.float32(16).view(np.int32)
    for name, shape in (("none", (0,)), ("no.rows", (0, 32)), ("no.columns", (2, 3, 0))):
        assert model.tensor_info(name).n_bytes == 0
        assert model[name].shape == shape
        assert quant.dequantize(model[name]).shape == shape
    np.testing.assert_array_equal(
        quant.matmul(np.ones((2, 0), np.float32), model["no.columns"][0]), np.zeros((2, 3))
    )
    assert quant.matmul(np.ones((2, 32), np.float32), model["no.rows"]).shape == (2, 0)
    assert model.n_bytes == 16 + 4 + 4
    path.write_bytes(data[:-1])
    with pytest.raises(quant.ModelFileError, match=r"'scalar\.ids' takes bytes"):
        quant.open(path)


def split_files(tmp_path, rng, n_parts=4):
    """A model of several parts; paths and tensors."""
    tensors = random_tensors(rng, 2 * n_parts - 2)
    assert len(tensors) == 2 * n_parts
    path = tmp_path / "model.gguf"
    write_file(path, tensors, METADATA, split_max_tensors=2)
    paths = sorted(tmp_path.glob("*.gguf"))
    assert [p.name for p in paths] == [
        f"model-{n + 1:05d}-of-{n_parts:05d}.gguf" for n in range(n_parts)
    ]
    return paths, tensors


def test_a_split_model_by_any_part(tmp_path, rng):
    paths, tensors = split_files(tmp_path, rng)
    for path in paths:
        model = quant.open(path)
        assert model.paths == tuple(map(str, paths))
        assert list(model) == list(tensors)
        assert model.metadata["split.no"] == 0
        assert model.metadata["a.text"] == METADATA["a.text"][1]
        for name, (data, _) in tensors.items():
            np.testing.assert_array_equal(
                model[name].data.ravel(), np.ascontiguousarray(data).view(np.uint8).ravel()
            )
        assert model.tensor_info(list(tensors)[-1]).path == str(paths[-1])


def test_a_split_model_named_relatively(tmp_path, rng, monkeypatch):
    paths, tensors = split_files(tmp_path, rng)
    monkeypatch.chdir(tmp_path)
    assert list(quant.open(paths[2].name)) == list(tensors)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_missing_part(tmp_path, rng, missing):
    paths, _ = split_files(tmp_path, rng)
    paths[missing].unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing.*{paths[missing].name}"):
        quant.open(paths[1])


def test_parts_that_do_not_belong_together(tmp_path, rng):
    paths, _ = split_files(tmp_path, rng)
    other = tmp_path / "other"
    other.mkdir()
    others, _ = split_files(other, rng)
    os.replace(others[2], paths[1])  # part 3 under the name of part 2
    with pytest.raises(
        quant.ModelFileError, match=r"by its metadata part 3 of 4.*by its name part 2"
    ):
        quant.open(paths[0])


def test_renamed_parts(tmp_path, rng):
    paths, _ = split_files(tmp_path, rng)
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(paths[1].read_bytes())
    with pytest.raises(quant.ModelFileError, match=r"call it NAME-00002-of-00004.gguf again"):
        quant.open(plain)
    fewer = tmp_path / "model-00001-of-00002.gguf"
    fewer.write_bytes(paths[0].read_bytes())
    with pytest.raises(quant.ModelFileError, match=r"one of 2 parts.*split.count says 4"):
        quant.open(fewer)
    whole = write_file(tmp_path / "whole-00001-of-00002.gguf", random_tensors(rng))
    with pytest.raises(quant.ModelFileError, match="give it another name"):
        quant.open(whole)


def test_a_merged_file_that_kept_a_parts_name(tmp_path):
    row = gb.row("a", (4,), gb.F32_TENSOR, 0)
    path = write_parts(tmp_path, [row], split_count=0)
    assert path.name == "m-00001-of-00001.gguf"
    assert list(quant.open(path)) == ["a"] and quant.open(path).paths == (str(path),)
    other = path.rename(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(quant.ModelFileError, match=r"one of 2 parts.*give it another name"):
        quant.open(other)
    beyond = other.rename(tmp_path / "m-00002-of-00001.gguf")
    write_parts(tmp_path, [row])
    with pytest.raises(quant.ModelFileError, match="by its name part 2 of 1"):
        quant.open(beyond)


def test_parts_of_two_models(tmp_path):
    rows = [gb.row(name, (4,), gb.F32_TENSOR, 0) for name in "ab"]
    llama, heads = ("general.architecture", gb.STRING, "llama"), "llama.head_count"
    mla = ("general.architecture", gb.STRING, "deepseek2")
    plain = ("general.name", gb.STRING, "part")
    for first, second, difference in (
        ([llama], [], None),
        ([llama], [llama, plain], None),
        ([llama, (heads, gb.U32, 8)], [llama, (heads, gb.U64, 8)], None),
        ([llama], [mla], "'general.architecture' is 'deepseek2', in .* it is 'llama'"),
        ([], [mla], "'general.architecture' is 'deepseek2', in .* it is None"),
        ([llama, (heads, gb.U32, 8)], [(heads, gb.U32, 9)], "head_count' is 9, in .* it is 8"),
        ([llama, (heads, gb.U32, 8)], [(heads, (gb.ARRAY, gb.U32), [8, 4])], "head_count' is arr"),
    ):
        path = write_parts(tmp_path, rows, more=(first, second))
        if difference is None:
            assert list(quant.open(path)) == ["a", "b"]
            continue
        with pytest.raises(quant.ModelFileError, match=f"{difference}.*: parts of two models"):
            quant.open(path)


def write_parts(tmp_path, rows, count_type=gb.I32, total=None, split_count=None, more=None):
    total = len(rows) if total is None else total
    for index, row in enumerate(rows):
        entries = [gb.entry(*entry) for entry in more[index]] if more else []
        entries += [
            gb.entry("split.no", gb.U16, index),
            gb.entry("split.count", gb.U16, len(rows) if split_count is None else split_count),
            gb.entry("split.tensors.count", count_type, total),
        ]
        name = f"m-{index + 1:05d}-of-{len(rows):05d}.gguf"
        (tmp_path / name).write_bytes(gb.padded(gb.header(entries, [row])) + bytes(64))
    return tmp_path / name


def test_contradictions_between_parts(tmp_path):
    rows = [gb.row(name, (4,), gb.F32_TENSOR, 0) for name in "ab"]
    assert list(quant.open(write_parts(tmp_path, rows))) == ["a", "b"]
    with pytest.raises(quant.ModelFileError, match=r"says 3 tensors, the 2 parts hold 2"):
        quant.open(write_parts(tmp_path, rows, total=3))
    with pytest.raises(quant.ModelFileError, match=r"split.tensors.count' is 2.0, not a count"):
        quant.open(write_parts(tmp_path, rows, gb.F32))
    with pytest.raises(quant.ModelFileError, match=r"tensor 'a' is in .*00001-of-00002.gguf too"):
        quant.open(write_parts(tmp_path, [rows[0], rows[0]]))
