"""Vectors for the tests of lowlevel.cpu.simd: values of every kind, and kernels made of one operation."""

import itertools

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

LANES = 16
TINY = np.float32(1e-45)  # the smallest subnormal number
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, np.nan, np.inf, -np.inf, TINY, -TINY,
     1.1754942e-38, 1.1754944e-38, -1.1754944e-38, 3.4028235e38, -3.4028235e38,
     16777215, 16777216, 8388607.5, 0.49999997, 1 / 3, 6.1e-5, 5.9604645e-08, 65504, 65520, 88.7],
    np.float32,
)  # fmt: skip
LEFT, RIGHT = (
    np.resize(x, 49 * LANES)
    for x in np.array(list(itertools.product(SPECIAL, SPECIAL)), np.float32).T
)
INTS = np.array([0, 1, -1, 2, 7, 255, -256, 65535, -65536, 2**31 - 1, -(2**31), 123456789], "i4")


def random_floats(rng, n):
    """Every kind of float32: random bits, which are of all magnitudes, and special values."""
    floats = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    return np.where(rng.random(n) < 0.1, rng.choice(SPECIAL, n), floats)


def random_ints(rng, n):
    ints = rng.integers(-(2**31), 2**31, n, dtype=np.int32)
    return np.where(rng.random(n) < 0.1, rng.choice(INTS, n), ints)


def assert_same(actual, expected):
    """The same bits, zeros' signs too; any NaN is as good as another."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if actual.dtype == np.float32:
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        actual = np.where(np.isnan(actual), 0, actual).view(np.uint32)
        expected = np.where(np.isnan(expected), 0, expected).view(np.uint32)
    np.testing.assert_array_equal(actual, expected)


# What loads 16 lanes of an array of a dtype.
LOAD = {
    "float32": simd.load_f32x16,
    "int32": simd.load_i32x16,
    "uint16": simd.load_u16x16,
    "uint8": simd.load_u8x16,
}


def lanewise(op, *arrays, dtype=None, lanes=LANES, loads=None):
    """`op` of the arrays, `lanes` at a time, as a kernel computes it."""
    loads = loads or [LOAD[a.dtype.name] for a in arrays]
    out = np.zeros(len(arrays[0]), dtype or arrays[0].dtype)
    assert len(out) % lanes == 0
    if len(arrays) == 1:
        (load,) = loads

        @kernel
        def run(a, out):
            for i in range(0, len(out), lanes):
                simd.store(out, i, op(load(a, i)))

    elif len(arrays) == 2:
        load, load_b = loads

        @kernel
        def run(a, b, out):
            for i in range(0, len(out), lanes):
                simd.store(out, i, op(load(a, i), load_b(b, i)))

    else:
        load, load_b, load_c = loads

        @kernel
        def run(a, b, c, out):
            for i in range(0, len(out), lanes):
                simd.store(out, i, op(load(a, i), load_b(b, i), load_c(c, i)))

    run(*arrays, out)
    return out


def inline(function):
    return kernel(function, inline=True)
