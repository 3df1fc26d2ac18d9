"""lowlevel.cpu.simd's vectors taken apart and put together, partial reads, angles, bfloat16 rounding."""

import ml_dtypes
import numpy as np
import pytest
from simd_cases import SPECIAL, assert_same, random_floats

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

SHUFFLES = {
    "even_lanes": (simd.even_lanes, lambda a, b: np.concatenate([a, b])[0::2]),
    "odd_lanes": (simd.odd_lanes, lambda a, b: np.concatenate([a, b])[1::2]),
    "zip_low": (simd.zip_low, lambda a, b: np.stack([a[:8], b[:8]], 1).reshape(-1)),
    "zip_high": (simd.zip_high, lambda a, b: np.stack([a[8:], b[8:]], 1).reshape(-1)),
}


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", SHUFFLES)
def test_lanes(rng, name):
    shuffle, expected = SHUFFLES[name]

    @kernel
    def run(a, b, out):
        simd.store(out, 0, shuffle(simd.load_f32x16(a, 0), simd.load_f32x16(b, 0)))

    a, b, out = random_floats(rng, 16), random_floats(rng, 16), np.zeros(16, np.float32)
    run(a, b, out)
    assert_same(out, expected(a, b))


def test_f32_to_bfloat(rng):
    """simd.f32_to_bfloat: nearest even, NaN stays one; of a vector and of a scalar."""

    @kernel
    def run(x, out, singles):
        for i in range(0, len(x), 16):
            simd.store(out, i, simd.f32_to_bfloat(simd.load_f32x16(x, i)))
        for i in range(len(x)):
            singles[i] = simd.f32_to_bfloat(x[i])

    x = np.concatenate([random_floats(rng, 16 * 60), np.resize(SPECIAL, 32)])
    out, singles = np.zeros((2, len(x)), np.uint16)
    run(x, out, singles)
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    for bits in (out, singles):
        assert_same((bits.astype(np.uint32) << 16).view(np.float32), expected)


@pytest.mark.parametrize("n", [0, 1, 7, 15, 16])
def test_read_first_f32(rng, n):
    """simd.read_first_f32: lanes from n on are what is said, whatever lies there."""

    @kernel
    def run(x, index, n, out):
        simd.store(
            out, 0, simd.read_first_f32(simd.address(x), index, n, np.float32(-3))
        )  # fmt: skip

    x, out = random_floats(rng, 40), np.zeros(16, np.float32)
    run(x, 5, n, out)
    assert_same(out, np.concatenate([x[5 : 5 + n], np.full(16 - n, -3, np.float32)]))


@pytest.mark.parametrize("n", [1, 9, 16])
def test_turn(rng, n):
    """simd.turn: the upper half of 64 bits of a product with a position."""

    @kernel
    def run(fractions, n, position, out):
        simd.store(out, 0, simd.turn(simd.address(fractions), n, position))

    fractions, out = rng.integers(0, 2**64, 16, dtype=np.uint64), np.zeros(16, np.int32)
    position = int(rng.integers(0, 2**31))
    run(fractions, n, position, out)
    products = [int(f) * position % 2**64 >> 32 for f in fractions[:n]]
    expected = np.zeros(16, np.uint32)
    expected[:n] = products
    assert_same(out, expected.view(np.int32))


def test_stack_floats(rng):
    """simd.stack_floats: memory of the kernel's own, at a multiple of 64."""

    @kernel
    def run(x, out):
        place = simd.stack_floats(32)
        for i in range(0, 32, 16):
            simd.write_f32x16(place, i, simd.load_f32x16(x, i))
        for i in range(32):
            out[31 - i] = simd.read_f32(place, i)
        return place % 64

    x, out = random_floats(rng, 32), np.zeros(32, np.float32)
    assert run(x, out) == 0
    assert_same(out, x[::-1])
