"""Dequantisation by the CUDA kernels: bit for bit what the gguf package says."""

import ml_dtypes
import numpy as np
import pytest
from quant_cases import (
    CHECKED,
    assert_same_bits,
    block_format,
    is_checked_in_every_way,
    orders_of,
    random_tensor,
    reference,
    width,
)
from test_cuda_copies import rows_far_apart

import quant.gpu.dequantize.run as launcher
from lowlevel import Pool, asarray, asnumpy, concat, cudasim, devices
from lowlevel.shapes import resolve_dtype
from quant import FORMATS, QuantTensor, dequantize
from quant.gpu.instances import DEQUANTIZE, OUTPUTS

NAMES = tuple(row.name for row in FORMATS.values())
DTYPES = ("float32", "float16", "bfloat16")
KERNELS = tuple(DEQUANTIZE.values())


def on_device(device, t, row_gap=0, offset=0):
    """A tensor on a device, its rows `row_gap` bytes apart, its first one `offset` bytes off."""
    rows = t.data.reshape(-1, t.row_bytes)
    n_rows, row_bytes = rows.shape
    stride = row_bytes + row_gap
    memory = np.zeros(offset + n_rows * stride, np.uint8)
    memory[offset:].reshape(n_rows, stride)[:, :row_bytes] = rows
    memory = asarray(memory, device)
    data = memory[offset:].reshape(n_rows, stride)[:, :row_bytes]
    return QuantTensor(data, t.format, (n_rows, t.columns))


def empty_rows(device, shape, dtype, row_gap=0, offset=0):
    """An array on a device, rows `row_gap` items apart, the first one `offset` items off."""
    n_rows, columns = shape
    stride = columns + row_gap
    memory = devices.get(device).empty((offset + n_rows * stride,), resolve_dtype(dtype))
    return memory[offset:].reshape(n_rows, stride)[:, :columns]


def check(found, t, dtype):
    assert_same_bits(asnumpy(found), reference(t, resolve_dtype(dtype)))


@pytest.mark.parametrize("key", DEQUANTIZE, ids=lambda key: f"{key[0]}-{key[1]}-{key[2]}")
def test_every_instance(key, device, launched, rng):
    """Side by side in one launch, and rows apart."""
    name, dtype, aligned = key
    t = random_tensor(rng, name, (7, width(name, 5)))
    gap = 32 - t.row_bytes % 16 if t.format.is_float else 3 * t.format.block_bytes
    offset, row_gap, out_gap = (0, gap, 8 + -t.columns % 8) if aligned else (1, 1, 3)
    if launcher.alignment(t.format) > 1:
        check(dequantize(on_device(device, t, offset=offset), dtype), t, dtype)
    else:  # blocks lie anywhere: it is the output that is not aligned
        out = empty_rows(device, t.shape, dtype, 0 if aligned else 1, offset)
        check(dequantize(on_device(device, t, offset=offset), out=out), t, dtype)
    out = empty_rows(device, t.shape, dtype, out_gap, offset)
    check(dequantize(on_device(device, t, row_gap), out=out), t, dtype)
    assert set(launched) == {DEQUANTIZE[key]} and len(launched) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, order", orders_of(NAMES), indirect=["order"])
def test_orders(name, dtype, order, rng):
    t = random_tensor(rng, name, (3, width(name, 9)))
    check(dequantize(t.to("cudasim"), dtype), t, dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_checked(name, aligned, rng):
    t = random_tensor(rng, name, (2, width(name, 3)))
    on = on_device("cudasim", t, offset=0 if aligned else 1)
    checks = CHECKED if is_checked_in_every_way(name) else {"ub": True}
    with cudasim.settings(**checks):
        for dtype in DTYPES:
            check(dequantize(on, dtype), t, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_sizes(name, dtype, device, rng):
    """From no weights to more than a thread block, so that blocks and vectors end anywhere."""
    for n_rows, n_blocks in ((0, 3), (4, 0), (1, 1), (1, 33), (129, 1), (5, 67)):
        t = random_tensor(rng, name, (n_rows, width(name, n_blocks)))
        check(dequantize(t.to(device), dtype), t, dtype)
    if block_format(name).is_float:
        for columns in (1, 3, 4, 7, 8, 9, 1023):
            t = random_tensor(rng, name, (3, columns))
            check(dequantize(t.to(device), dtype), t, dtype)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "Q6_K"])
def test_tiles_of_rows(name, dtype, offset, device, rng):
    """Rows apart from each other: many in a tile, more than one tile, one and a bit; none alike modulo 16."""
    _, _, vector = OUTPUTS[dtype]
    most = launcher.TILE_VECTORS * vector // block_format(name).block_weights
    for n_rows, row_blocks in ((2 * most + 1, 1), (most // 3, 3), (3, most + 1), (2, 2 * most)):
        t = random_tensor(rng, name, (n_rows, width(name, row_blocks)))
        gap = launcher.alignment(block_format(name))
        out = empty_rows(device, t.shape, dtype, 8 + offset)
        check(dequantize(on_device(device, t, gap, offset), out=out), t, dtype)


@pytest.mark.parametrize("name", ["Q8_0", "IQ4_NL", "Q4_0", "MXFP4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_scale(rng, name, dtype, device):
    """All 65536 values of d, one in each block; of a scale of eight bits all 256."""
    t = random_tensor(rng, name, (256, 256 * 32))
    scale = t.format.fields[0]
    bits = np.arange(65536).astype(f"u{scale.n_bytes}").reshape(256, 256)
    t.data.view(t.format.block_dtype)[scale.name] = bits.view(scale.dtype)
    check(dequantize(t.to(device), dtype), t, dtype)


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_float(name, dtype, device):
    t = QuantTensor(np.arange(65536, dtype=np.uint16).view(np.uint8), name, (65536,))
    check(dequantize(t.to(device), dtype), t, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounded_to_nearest_even(dtype, device):
    """Ties between neighbouring 16-bit floats, and their float32 neighbours."""
    dtype = resolve_dtype(dtype)
    largest = np.array(ml_dtypes.finfo(dtype).max, dtype).view(np.uint16)
    values = np.arange(int(largest) + 1, dtype=np.uint16).view(dtype).astype(np.float64)
    ties = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    ties = np.append(ties, np.float32(65520))
    around = [ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))]
    values = np.concatenate([*around, np.float32([np.inf, np.nan, 1e-45, 3e38])])
    values = np.concatenate([values, -values])
    t = QuantTensor(values.view(np.uint8), "F32", values.shape)
    check(dequantize(t.to(device), dtype), t, dtype)


def test_any_strides(device, rng):
    """More axes than a launch takes, reversed ones and repeated ones among them."""
    t = random_tensor(rng, "Q4_K", (3, 4, 5, 512))
    on = t.to(device)
    check(dequantize(on), t, "float32")
    for index in (np.s_[::2, 1:3, ::2], np.s_[::-1, ::-1, ::-1], np.s_[1], np.s_[:, 2, 1:]):
        check(dequantize(on[index]), t[index], "float32")
    repeated = QuantTensor(on.data[:1].repeat(2, 0), "Q4_K", (2, 4, 5, 512))
    check(dequantize(repeated)[1], t[0], "float32")
    out = devices.get(device).empty((4, 3, 5, 512), np.dtype("float32"))
    check(dequantize(on, out=out.transpose(1, 0, 2, 3)), t, "float32")


def test_more_blocks_than_a_launch_counts(device, launched, monkeypatch, rng):
    monkeypatch.setattr(launcher, "MAX_BLOCKS", 3)
    for shape in ((1, 13 * 32), (7, 2 * 32), (2, 3, 5 * 32)):
        t = random_tensor(rng, "Q8_0", shape)
        check(dequantize(t.to(device)), t, "float32")
    assert len(launched) > 10


@pytest.mark.parametrize("name", ["Q6_K", "BF16"])
def test_rows_far_apart(name, device, rng):
    t = random_tensor(rng, name, (2, width(name, 3)))
    rows = rows_far_apart(device, t.row_bytes)
    concat([asarray(t.data, device)], out=rows)
    check(dequantize(QuantTensor(rows, name, t.shape)), t, "float32")


def test_into_a_pool(device, rng):
    t = random_tensor(rng, "Q6_K", (3, 512))
    with Pool("64KiB", device=device, debug=True) as pool, pool.scope("weights"):
        out = pool.empty(t.shape, "bfloat16", tag="weights")
        assert dequantize(t.to(device), out=out) is out
        check(out, t, "bfloat16")


def test_moving_tensors(device, rng):
    t = random_tensor(rng, "Q2_K", (4, 512))
    on = t.to(device)
    assert (t.device, on.device) == ("cpu", device) and on.to(device) is on and t.to("cpu") is t
    back = on[1:3].to("cpu")
    assert back.device == "cpu" and np.array_equal(back.data, t.data[1:3])
    assert type(back.data) is np.ndarray
    assert on.reshape(2, 2, 512).shape == (2, 2, 512)
    strided = QuantTensor(t.data[::2], "Q2_K", (2, 512)).to(device)
    assert np.array_equal(asnumpy(strided.data), t.data[::2])


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(dtype="int8"), ValueError, "dtype: expected one of float32, float16, bfloat16"),
        (dict(n_threads=2), ValueError, "n_threads"),
        (dict(out=np.empty((4, 512), np.float32)), TypeError, "out: lies on cpu"),
    ],
)
def test_refused(change, error, message, device, rng):
    t = random_tensor(rng, "Q2_K", (4, 512)).to(device)
    with pytest.raises(error, match=message):
        dequantize(t, **change)
