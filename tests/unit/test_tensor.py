"""QuantTensor: shapes, views, what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import lowlevel
from quant import QuantTensor


@pytest.fixture
def stack():
    """Three experts of four rows of two IQ4_NL blocks; every byte tells where it is."""
    data = np.arange(3 * 4 * 36, dtype=np.int64).astype(np.uint8).reshape(3, 4, 36)
    return QuantTensor(data, "iq4_nl", (3, 4, 64))


def test_attributes(stack):
    assert stack.qtype is GGMLQuantizationType.IQ4_NL
    assert stack.format.name == "IQ4_NL"
    assert (stack.shape, stack.ndim, stack.size, len(stack)) == ((3, 4, 64), 3, 768, 3)
    assert (stack.n_rows, stack.columns, stack.row_bytes, stack.n_bytes) == (12, 64, 36, 432)
    assert repr(stack) == "<QuantTensor IQ4_NL (3, 4, 64), 432 bytes, cpu>"


def test_ranges_of_columns_are_whole_blocks(stack):
    half = stack.column_range(32, 64)
    assert half.shape == (3, 4, 32) and np.shares_memory(half.data, stack.data)
    np.testing.assert_array_equal(half.data, stack.data[..., 18:])
    for start, stop in ((0, 16), (8, 40), (32, 96), (-32, 32), (64, 32)):
        with pytest.raises(ValueError, match="start, stop: IQ4_NL packs 32 columns in a block"):
            stack.column_range(start, stop)


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (1, (4, 64)),
        (-1, (4, 64)),
        (np.int64(2), (4, 64)),
        (slice(1, 3), (2, 4, 64)),
        ((1, 2), (64,)),
        ((slice(None), slice(1, None, 2)), (3, 2, 64)),
        ((slice(None), slice(None, None, -1)), (3, 4, 64)),
        ((..., 2, slice(None)), (3, 64)),
        ((slice(0, 0),), (0, 4, 64)),
        (..., (3, 4, 64)),
        ((1, slice(None), slice(None)), (4, 64)),
    ],
)
def test_indexing_gives_views(stack, index, shape):
    part = stack[index]
    assert part.shape == shape and part.qtype is stack.qtype
    expected = stack.data[index]
    assert np.array_equal(part.data, expected)
    assert part.data.strides == expected.strides
    assert part.size == 0 or np.shares_memory(part.data, stack.data)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((0, 0, 0), r"last axis \(columns\)"),
        ((..., slice(0, 32)), r"last axis \(columns\)"),
        ((0, 0, 0, 0), "too many items for 3 axes"),
        ((..., ...), "too many items"),
        ([0, 1], "expected ints, slices"),
        (None, "expected ints, slices"),
        (True, "expected ints, slices"),
        (3, "out of bounds"),
        ((0, -5), "out of bounds"),
    ],
)
def test_bad_indices(stack, index, message):
    with pytest.raises(IndexError, match=message):
        stack[index]


def test_iteration_stops(stack):
    assert [expert.shape for expert in stack] == [(4, 64)] * 3


def test_a_single_row_has_no_axis_to_index():
    row = QuantTensor(np.zeros(34, np.uint8), "Q8_0", (32,))
    assert (row.n_rows, row.ndim) == (1, 1)
    assert row[...].shape == (32,)
    with pytest.raises(IndexError, match="last axis"):
        row[0]


def test_strided_broadcast_and_read_only_data():
    data = np.zeros((5, 3, 40), np.uint8)
    data.flags.writeable = False
    gaps = QuantTensor(data[::2, :, 2:36], "Q8_0", (3, 3, 32))
    assert gaps.n_bytes == 9 * 34
    assert gaps.data.strides == (240, 40, 1)
    same_row = np.broadcast_to(data[0, 0, :34], (1 << 40, 34))
    huge = QuantTensor(same_row, "Q8_0", (1 << 40, 32))
    assert huge.size == 1 << 45 and huge[1 << 39].shape == (32,)


def test_flat_bytes_are_shaped(tmp_path):
    (tmp_path / "blocks").write_bytes(bytes(range(2 * 3 * 18)))
    flat = np.memmap(tmp_path / "blocks", np.uint8, mode="r")
    t = QuantTensor(flat, "Q4_0", (2, 3, 32))
    assert t.data.shape == (2, 3, 18) and t.data[1, 2, 17] == 107
    assert type(t.data) is np.ndarray and not t.data.flags.writeable


@pytest.mark.parametrize(
    ("data", "qtype", "shape", "error", "message"),
    [
        (np.zeros((2, 34), np.uint8), "Q8_0", (2, 64), ValueError, r"shape \(2, 68\).*\(2, 34\)"),
        (np.zeros(33, np.uint8), "Q8_0", (1, 32), ValueError, "got shape"),
        (np.zeros((2, 34), np.int8), "Q8_0", (2, 32), TypeError, "got int8 array"),
        ([0] * 34, "Q8_0", (1, 32), TypeError, "got list"),
        (np.zeros((1, 84), np.uint8), "Q2_K", (1, 192), ValueError, "multiple of 256; got 192"),
        (np.zeros((1, 84), np.uint8), "Q8_K", (1, 256), ValueError, "Q8_K is not supported"),
        (np.zeros((32, 34), np.uint8).T[:, :34], "Q8_0", (34, 32), ValueError, "got shape"),
        (np.zeros((34, 2), np.uint8).T, "Q8_0", (2, 32), ValueError, "must be contiguous"),
        (np.zeros(68, np.uint8)[::2], "Q8_0", (1, 32), ValueError, "got shape"),
        (np.zeros(34, np.uint8), "Q8_0", (), ValueError, "none negative"),
        (np.zeros(34, np.uint8), "Q8_0", (-1, 32), ValueError, "none negative"),
        (np.zeros(34, np.uint8), "Q8_0", 32, TypeError, "sequence of ints"),
        (np.zeros(34, np.uint8), "Q8_0", (1.0, 32), TypeError, "sequence of ints"),
    ],
)
def test_what_does_not_fit_is_refused(data, qtype, shape, error, message):
    with pytest.raises(error, match=message):
        QuantTensor(data, qtype, shape)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0,), (2, 0, 32)])
def test_empty(shape):
    t = QuantTensor(np.zeros(0, np.uint8), "Q8_0", shape)
    assert t.size == 0 and t.n_bytes == 0 and t.shape == shape


def test_reshape(stack):
    rows = stack.reshape(12, 64)
    assert rows.shape == (12, 64) and np.shares_memory(rows.data, stack.data)
    assert np.array_equal(rows[7].data, stack[1, 3].data)
    assert rows.reshape((3, 2, 2, 64)).data.shape == (3, 2, 2, 36)
    with pytest.raises(ValueError, match="does not keep the columns"):
        stack.reshape(24, 32)
    with pytest.raises(ValueError, match="need a copy"):
        stack[:, 1:3].reshape(6, 64)


@pytest.mark.parametrize("name", ["F32", "F16"])
def test_as_array_of_floats(name):
    dtype = {"F32": np.float32, "F16": np.float16}[name]
    values = np.arange(15).reshape(3, 5).astype(dtype)
    t = QuantTensor(values.view(np.uint8), name, (3, 5))
    assert t.as_array().dtype == dtype and np.array_equal(t[1:].as_array(), values[1:])
    assert np.shares_memory(t.as_array(), values)


def test_as_array_of_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(15).reshape(3, 5).astype(ml_dtypes.bfloat16)
    t = QuantTensor(values.view(np.uint8), "BF16", (3, 5))
    assert np.array_equal(t.as_array(), values)


def test_as_array_at_an_odd_address():
    values = np.arange(15, dtype=np.float32)
    data = np.concatenate([[np.uint8(0)], values.view(np.uint8)])[1:]
    assert np.array_equal(QuantTensor(data, "F32", (15,)).as_array(), values)


def test_as_array_of_blocks_is_refused(stack):
    with pytest.raises(ValueError, match=r"IQ4_NL is packed.*quant\.dequantize"):
        stack.as_array()


def test_devices(stack):
    assert stack.device == "cpu" and stack.to("cpu") is stack
    with pytest.raises(ValueError, match=r"device: .*\"cpu\".*'tpu:0'"):
        stack.to("tpu:0")


def test_import_is_light():
    """No kernel, no SciPy, no CuPy: those come with the first call that needs them."""
    code = (
        "import sys, quant; "
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('scipy', 'cupy') "
        "or m.startswith(('quant.cpu.', 'quant.gpu.'))]; "
        "print(heavy); sys.exit(bool(heavy))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_a_copy_may_lie_in_a_pool(device):
    data = np.random.default_rng(3).integers(0, 256, (2, 4, 34), dtype=np.uint8)
    t = QuantTensor(data, "Q8_0", (2, 4, 32))
    with lowlevel.Pool("1KiB", device=device) as pool:
        for source in (t, t[1:], t.to(device)):
            there = source.to(device, pool=pool)
            assert there.device == device and pool.used == -(-source.n_bytes // 256) * 256
            assert np.array_equal(lowlevel.asnumpy(there.data), lowlevel.asnumpy(source.data))
            pool.free(there.data)
        with pytest.raises(TypeError, match=f"pool: expected one on .*got one on {device}"):
            t.to("cudasim" if device == "cpu" else "cpu", pool=pool)
    with lowlevel.Pool("256", device=device) as pool, pytest.raises(lowlevel.BudgetError):
        t.to(device, pool=pool)
