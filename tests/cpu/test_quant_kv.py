"""Quantised K and V as attention reads them: the compiled fills of `QuantTensor.kv_source`."""

import ctypes
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest

from lowlevel.attention.kv_source import as_kv_source, kv_type_of
from quant import KV_TYPES, QuantTensor
from quant.formats import KV_FORMATS

QUANTISED = tuple(row.name for row in KV_FORMATS)
FILL = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
)


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def random_cache(rng, name, shape):
    row_bytes = shape[-1] // 32 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    data = rng.integers(0, 256, (*shape[:-1], row_bytes), dtype=np.uint8)
    return QuantTensor(data, name, shape)


def filled(source, rows, stride):
    """Rows of one head, decoded by the compiled function into rows `stride` floats apart."""
    out = np.full((len(rows), stride), 7, np.float32)
    FILL(source.fill_address)(
        rows.ctypes.data, rows.strides[0], len(rows), source.shape[2], out.ctypes.data, stride
    )
    return out


def test_plans_know_the_types_that_sources_have():
    for row in KV_FORMATS:
        assert kv_type_of(row.name).block_weights == row.block_weights
    assert set(KV_TYPES) == {row.name for row in KV_FORMATS}


@pytest.mark.parametrize("name", QUANTISED)
def test_fill(rng, name):
    t = random_cache(rng, name, (3, 11, 192))
    source = as_kv_source(t, "k")
    assert source.shape == t.shape and source.type.name == name and source.data is t.data
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(t.data.reshape(33, -1), t.qtype).reshape(t.shape)
    for rows in (slice(2, 9), slice(None, None, 3), slice(None, None, -1), slice(4, 4)):
        out = filled(source, source.data[1, rows], 200)
        assert np.array_equal(out[:, :192], expected[1, rows], equal_nan=True)
        assert (out[:, 192:] == 7).all()


def test_one_address_a_format(rng):
    first, second = (random_cache(rng, "Q8_0", (1, 2, d)).kv_source() for d in (64, 128))
    assert first.fill_address == second.fill_address
    assert first.fill_address != random_cache(rng, "IQ4_NL", (1, 2, 64)).kv_source().fill_address


@pytest.mark.parametrize("name", ["F32", "F16"])
def test_floats_are_dense(rng, name):
    values = rng.standard_normal((2, 5, 24)).astype({"F32": "float32", "F16": "float16"}[name])
    source = QuantTensor(values.view(np.uint8), name, values.shape).kv_source()
    assert source.type.name == values.dtype.name
    assert np.array_equal(filled(source, source.data[1], 24), values[1].astype(np.float32))


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_super_blocks_are_refused(name):
    n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    t = QuantTensor(np.zeros((1, 2, n_bytes), np.uint8), name, (1, 2, 256))
    with pytest.raises(ValueError, match=f"{name} packs 256 .* work for K and V: Q8_0, Q4_0, IQ4_"):
        t.kv_source()


@pytest.mark.parametrize("shape", [(32,), (4, 32), (1, 1, 4, 32)])
def test_other_numbers_of_axes_are_refused(rng, shape):
    with pytest.raises(ValueError, match=r"expected \(n_head_kv, n_kv, d\), got Q8_0 of shape"):
        random_cache(rng, "Q8_0", shape).kv_source()


def test_without_a_cache_folder():
    """The fill compiles as well where nothing can be written."""
    code = (
        "import numpy as np; from quant import QuantTensor; "
        "t = QuantTensor(np.zeros((1, 2, 34), np.uint8), 'Q8_0', (1, 2, 32)); "
        "assert t.kv_source().fill_address"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": "/dev/null/none"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
