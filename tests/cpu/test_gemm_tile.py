"""The register tile: every size of it against float64, with odd strides and accumulation."""

import ml_dtypes
import numpy as np
import pytest

from lowlevel.cpu import gemm_tile
from lowlevel.cpu.jit import kernel

ROWS, VECTORS = gemm_tile.TILE_ROWS, gemm_tile.TILE_VECTORS
# What attention uses, and sizes in between.
SIZES = sorted({(ROWS, VECTORS), (ROWS, 1), (1, VECTORS), (1, 1), (3, VECTORS)})


def make_caller(m, n_vectors, b_type="float32"):
    tile = gemm_tile.make_gemm_tile(m, n_vectors, b_type=b_type)

    @kernel
    def call(a, a_row, a_step, b, b_step, c, c_row, depth, accumulate):
        tile(a, a_row, a_step, b, b_step, c, c_row, depth, accumulate)

    return call


@pytest.fixture(scope="module", params=SIZES, ids=str)
def tile(request):
    """(rows, columns, the tile as a function of addresses and strides)"""
    m, n_vectors = request.param
    return m, 16 * n_vectors, make_caller(m, n_vectors)


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def place(rng, n_floats):
    """(memory, address, index of its first float): room on both sides, at any multiple of 4 bytes."""
    memory = rng.standard_normal(n_floats + 64, dtype=np.float32)
    first = int(rng.integers(16, 48))
    return memory, memory.ctypes.data + 4 * first, first


def strided(memory, first, shape, strides):
    return np.lib.stride_tricks.as_strided(memory[first:], shape, [4 * s for s in strides])


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4, 5, 7, 8, 63, 200])
@pytest.mark.parametrize("accumulate", [False, True])
def test_products(rng, tile, depth, accumulate):
    m, n, call = tile
    for a_by_rows in (True, False):
        gap, b_step, c_row = (int(x) for x in rng.integers(0, 9, 3))
        b_step, c_row = n + b_step, n + c_row
        # A row-major with a gap behind each row (keys), or column-major (weights of a panel).
        a_row, a_step = (depth + gap, 1) if a_by_rows else (1, m + gap)
        a_floats = (m - 1) * a_row + max(depth - 1, 0) * a_step + 1
        a_memory, a, a_first = place(rng, a_floats)
        b_memory, b, b_first = place(rng, depth * b_step + n)
        c_memory, c, c_first = place(rng, m * c_row)
        wide_a = strided(a_memory, a_first, (m, depth), (a_row, a_step)).astype(np.float64)
        wide_b = strided(b_memory, b_first, (depth, n), (b_step, 1)).astype(np.float64)
        expected = c_memory.astype(np.float64)
        target = np.lib.stride_tricks.as_strided(expected[c_first:], (m, n), (8 * c_row, 8))
        target[...] = wide_a @ wide_b + (target if accumulate else 0)
        size = np.ones(len(expected))
        sizes = np.lib.stride_tricks.as_strided(size[c_first:], (m, n), (8 * c_row, 8))
        sizes[...] = np.abs(wide_a) @ np.abs(wide_b) + 1
        if not accumulate:  # what was there must not matter
            strided(c_memory, c_first, (m, n), (c_row, 1))[...] = np.nan
        call(a, a_row, a_step, b, b_step, c, c_row, depth, accumulate)
        assert (np.abs(c_memory - expected) <= 1e-6 * size).all()
        outside = np.ones(len(expected), bool)
        np.lib.stride_tricks.as_strided(outside[c_first:], (m, n), (c_row, 1))[...] = False
        np.testing.assert_array_equal(c_memory[outside], expected[outside].astype(np.float32))


def test_sums_are_chains_of_fused_products(rng, tile):
    """Small integers: exact in any order. Huge products: cancelled without rounding or overflow."""
    m, n, call = tile
    depth = 40
    a = rng.integers(-50, 50, (m, depth)).astype(np.float32)
    b = rng.integers(-50, 50, (depth, n)).astype(np.float32)
    c = np.empty((m, n), np.float32)
    arguments = (a.ctypes.data, depth, 1, b.ctypes.data, n, c.ctypes.data, n)
    call(*arguments, depth, False)
    np.testing.assert_array_equal(c, a @ b)
    a[:, :2], b[0], b[1] = 2.0**64 + 2.0**41, 2.0**62, -(2.0**62)
    call(*arguments, 2, False)
    np.testing.assert_array_equal(c, 0)
    a[:, 0], a[:, 1] = -1, 4097
    b[0], b[1] = 16785408, 4097  # 4097**2 = 16785409 is no float32
    call(*arguments[:3], b.ctypes.data, n, c.ctypes.data, n, 2, False)
    np.testing.assert_array_equal(c, 1)


@pytest.mark.parametrize(
    "b_type, dtype", [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
@pytest.mark.parametrize("size", [(1, 4 * VECTORS), (4, 2 * VECTORS), (1, 1)], ids=str)
def test_b_of_16_bits(rng, b_type, dtype, size):
    """Any bits of it, at any even address, with any distance between rows."""
    m, n = size[0], 16 * size[1]
    call = make_caller(*size, b_type)
    for depth in (0, 1, 3, 4, 9, 50):
        a = rng.standard_normal((m, depth), np.float32)
        bits = rng.integers(0, 1 << 16, (depth + 1, n + 5), dtype=np.uint16)
        bits[bits & 0x7C00 > 0x3C00] &= 0x3FFF  # none above 2, nor NaN
        b, c = bits.view(dtype)[:depth, 3 : 3 + n], rng.standard_normal((m, n), np.float32)
        expected = c + a.astype(np.float64) @ b.astype(np.float64)
        call(a.ctypes.data, depth, 1, bits.ctypes.data + 6, n + 5, c.ctypes.data, n, depth, True)
        np.testing.assert_allclose(c, expected, rtol=0, atol=1e-4)


def test_nan_and_inf_stay_in_their_rows_and_columns(rng, tile):
    m, n, call = tile
    depth = 9
    a = np.ones((m, depth), np.float32)
    b = np.ones((depth, n), np.float32)
    c = np.empty((m, n), np.float32)
    b[3, 5], b[4, 7], b[5, 9] = np.nan, np.inf, -np.inf
    a[m - 1, 4] = 0
    call(a.ctypes.data, depth, 1, b.ctypes.data, n, c.ctypes.data, n, depth, False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(c, a @ b)


def test_zero_and_negative_strides(rng, tile):
    """One row of A for all (stride 0), B upwards from its last row."""
    m, n, call = tile
    a, b = rng.standard_normal(7, np.float32), rng.standard_normal((7, n), np.float32)
    c = np.empty((m, n), np.float32)
    call(a.ctypes.data, 0, 1, b[6].ctypes.data, -n, c.ctypes.data, n, 7, False)
    expected = np.broadcast_to(a.astype(np.float64) @ b[::-1], (m, n))
    np.testing.assert_allclose(c, expected, rtol=0, atol=1e-5)
