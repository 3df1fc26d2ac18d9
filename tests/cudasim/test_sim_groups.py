"""Cooperative groups, wmma and the pipeline's primitives against NumPy."""

import numpy as np
import pytest
from sim_kernels import ORDERS, line_of

from lowlevel import cudasim


@pytest.mark.parametrize("n", [64, 48])
def test_tiles(anywhere, rng, n):
    x = rng.integers(0, 8, n).astype(np.int32)
    out = np.zeros((n, 9), np.int32)
    for order in ORDERS:
        anywhere("groups.cu", "tiles")((1,), (n,), (x, out), order=order)
        for first in range(0, n, 8):
            v, got, rank = x[first : first + 8], out[first : first + 8], np.arange(8)
            np.testing.assert_array_equal(got[:, 0], np.where(rank < 6, v[(rank + 2) % 8], v))
            np.testing.assert_array_equal(got[:, 1], v.sum())
            np.testing.assert_array_equal(got[:, 3], sum(int(w & 1) << i for i, w in enumerate(v)))
            ranks = 100 * (first % 32 // 8) + 1000 * (first // 32)  # of the tile, of the warp
            np.testing.assert_array_equal(got[:, 4], rank + ranks + 80000)
            np.testing.assert_array_equal(got[:, 5], (v == 5).any() + 2)
            np.testing.assert_array_equal(got[:, 6], v[rank ^ 1] - v[3])
            same = [sum(int(w & 3 == u & 3) << i for i, w in enumerate(v)) for u in v]
            np.testing.assert_array_equal(got[:, 7], same)
        for first in range(0, n, 32):
            np.testing.assert_array_equal(out[first : first + 32, 2], x[first : first + 32].max())
        np.testing.assert_array_equal(out[:, 8], np.arange(n))


def test_a_tile_that_not_all_sync(kernel):
    out = np.zeros(64, np.int32)
    function = kernel("groups.cu", "tile_sync", race=True)
    function((1,), (64,), (out, np.int32(-1)), race=True)
    np.testing.assert_array_equal(out, 3 * (np.arange(64) ^ 1))
    with pytest.raises(cudasim.RaceError, match=r"race on shared box\[") as caught:
        function((1,), (64,), (out, np.int32(21)), race=True)
    assert caught.value.line == line_of("groups.cu", "box[threadIdx.x ^ 1]")


@pytest.mark.parametrize(("name", "dtype", "m", "n"), [
    ("wmma_half", np.float16, 32, 8), ("wmma_bfloat", np.uint16, 16, 16),
])  # fmt: skip
def test_products_of_16_bits(anywhere, rng, name, dtype, m, n):
    a, b = rng.integers(-64, 64, (m, 16)) / 8, rng.integers(-64, 64, (n, 16)) / 8
    if dtype == np.uint16:  # bfloat16's bits
        stored = [(v.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for v in (a, b)]
    else:
        stored = [v.astype(dtype) for v in (a, b)]
    d = cudasim.asnumpy(cudasim.empty((m, n)))
    anywhere("groups.cu", name)((1,), (32,), (*stored, d))
    np.testing.assert_array_equal(d, 2 * (a @ b.T + 1))


def test_products_of_bytes_and_tf32(anywhere, rng):
    a, b = (rng.integers(-128, 128, (16, size)).astype(np.int8) for size in (16, 32))
    d = rng.integers(-1000, 1000, (32, 8)).astype(np.int32)
    expected = d + b.astype(np.int32).T @ a[:, :8]
    anywhere("groups.cu", "wmma_bytes")((1,), (32,), (a, b, d))
    np.testing.assert_array_equal(d, expected)
    a, b = rng.integers(-512, 512, (16, 8)), rng.integers(-512, 512, (8, 16))
    noise = np.float32(2.0**-14)  # what tf32 rounds away
    d = np.zeros((16, 16), np.float32)
    arguments = [(v + noise * (v % 2)).astype(np.float32) for v in (a, b)]
    anywhere("groups.cu", "wmma_tf32")((1,), (32,), (*arguments, d))
    np.testing.assert_array_equal(d, a @ b)


@pytest.mark.parametrize("order", ORDERS)
def test_pipeline_s_primitives(kernel, rng, order):
    x = rng.standard_normal((64, 4)).astype(np.float32)
    y = cudasim.empty((64, 4))
    expected = x.copy()
    expected[32:, 3] = 0  # zfill
    kernel("groups.cu", "pipeline")((1,), (32,), (x, y, np.int32(0)), order=order)
    np.testing.assert_array_equal(y, expected)
    kernel("groups.cu", "pipeline")((1,), (32,), (x, y, np.int32(1)), order=order)
    np.testing.assert_array_equal(y[:32], expected[:32])
    assert np.isnan(y[32:]).all()  # nobody has waited for it
