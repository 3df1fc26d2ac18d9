"""Intrinsics, 16-bit floats, warp functions and built-in variables against NumPy."""

from fractions import Fraction

import numpy as np
import pytest
from sim_kernels import KERNELS, ORDERS

from lowlevel import cudasim


def _integers(rng, n):
    values = rng.integers(-(2**31), 2**31, n, dtype=np.int64)
    values[:6] = [0, -1, 2**31 - 1, -(2**31), 0x80, 0x7F80FF01]
    return values.astype(np.int32)


def test_integer_intrinsics(anywhere, rng):
    n = 300
    a, b = _integers(rng, n), rng.permutation(_integers(rng, n))
    out = np.zeros((n, 16), np.int32)
    anywhere("intrinsics.cu", "integers")((3,), (128,), (a, b, out, np.int32(n)))
    u, v = a.view(np.uint32).astype(np.uint64), b.view(np.uint32).astype(np.uint64)
    bytes_of = lambda x, kind: x.view(kind).reshape(n, 4).astype(np.int64)  # noqa: E731
    signed_a, signed_b = bytes_of(a, np.int8), bytes_of(b, np.int8)
    unsigned_a, unsigned_b = bytes_of(a, np.uint8), bytes_of(b, np.uint8)
    halves = a.view(np.int16).reshape(n, 2).astype(np.int64)

    def pack(parts):
        return (parts.astype(np.int64) & 0xFF).astype(np.uint8).view(np.int32).ravel()

    def low32(x):
        return (np.asarray(x).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)

    both = [[int(y) << 32 | int(x)] for x, y in zip(u, v, strict=True)]
    expected = [
        low32((signed_a * signed_b).sum(1) + 7),
        low32((unsigned_a * unsigned_b).sum(1) + 7),
        pack(np.stack([unsigned_a[:, 1], unsigned_a[:, 3], unsigned_b[:, 1], unsigned_b[:, 3]], 1)),
        a,  # the top bits of the selectors mean nothing
        [int(x).bit_count() for x in u],
        [32 - int(x).bit_length() for x in u],
        [(int(x) & -int(x)).bit_length() for x in u],
        low32([int(f"{int(x):032b}"[::-1], 2) for x in u]),
        low32((a.astype(np.int64) * b) >> 32),
        low32([int(x) * int(y) >> 32 for x, y in zip(u, v, strict=True)]),
        low32([(w << 11 >> 32) & 0xFFFFFFFF for (w,) in both]),
        low32([w >> 11 & 0xFFFFFFFF for (w,) in both]),
        pack(np.clip(signed_a - signed_b, -128, 127)),
        pack(unsigned_a + unsigned_b),
        pack(np.where(unsigned_a != unsigned_b, 0xFF, 0)),
        low32((halves * signed_b[:, :2]).sum(1) + 5) ^ low32((halves * signed_b[:, 2:]).sum(1) + 5),
    ]
    for i, column in enumerate(expected):
        np.testing.assert_array_equal(out[:, i], column, err_msg=f"intrinsic {i}")


def _round_fraction(value, mantissa_bits, bias, largest):
    """`value` (a Fraction) to the nearest even number of a 16-bit format, as a float."""
    if value == 0:
        return 0.0
    exponent = int(np.floor(np.log2(float(abs(value)))))
    for candidate in (exponent - 1, exponent, exponent + 1):
        if Fraction(2) ** candidate <= abs(value) < Fraction(2) ** (candidate + 1):
            exponent = candidate
    unit = Fraction(2) ** (max(exponent, 1 - bias) - mantissa_bits)
    rounded = round(value / unit) * unit  # Python rounds Fractions to even
    return float(rounded) if abs(rounded) <= largest else np.copysign(np.inf, float(value))


@pytest.mark.parametrize(("name", "mantissa", "bias"), [("halves", 10, 15), ("bfloats", 7, 127)])
def test_16_bit_arithmetic_rounds_once(anywhere, rng, name, mantissa, bias):
    n = 400
    if name == "halves":
        stored = rng.integers(0, 1 << 16, (3, n)).astype(np.uint16).view(np.float16)
        stored[~np.isfinite(stored)] = 1
        # Sums whose second rounding would go the wrong way: x * y + z with z in the last place.
        stored[:, :2] = [[1 + 2**-10, 2.0**-24], [1 + 2**-10, 1.5], [2.0**-24, 2.0**-24]]
        values, largest, as_float = stored, 65504.0, lambda x: x.astype(np.float64)
    else:
        values = (rng.standard_normal((3, n)) * 2.0 ** rng.integers(-60, 60, (3, n))).astype(
            np.float32
        )
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
        largest = float((2 - 2**-7) * 2.0**127)
        as_float = lambda x: (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)  # noqa: E731
    a, b, c = np.ascontiguousarray(values)
    out = np.zeros((n, 8), a.dtype)
    anywhere("intrinsics.cu", name)((4,), (128,), (a, b, c, out, np.int32(n)))
    got = as_float(out)
    for i in range(n):
        x, y, z = (Fraction(float(as_float(v[i : i + 1])[0])) for v in (a, b, c))
        exact = [
            x + y,
            x - y,
            x * y,
            x / y if y else None,
            x * y + z,
            max(x, y),
            x * x + x,
            y * y + y,
        ]
        for j, value in enumerate(exact):
            if value is not None:
                wanted = _round_fraction(value, mantissa, bias, largest)
                assert got[i, j] == wanted, (name, j, float(x), float(y), float(z))


def test_conversions(anywhere, rng):
    x = np.concatenate([
        rng.standard_normal(200) * 10.0 ** rng.integers(-9, 6, 200),
        np.arange(2048) * 2.0**-25,  # subnormal halves and ties between them
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 65519.99, 65520, 2.5, 3.5, -2.5, 3e9, -3e9, 3.4e38],
    ]).astype(np.float32)  # fmt: skip
    n = x.size
    h, b = np.zeros(n, np.float16), np.zeros(n, np.uint16)
    h_back, b_back = np.zeros(n, np.float32), np.zeros(n, np.float32)
    rounded, fused = np.zeros(n, np.int32), np.zeros((n, 2))
    function = anywhere("intrinsics.cu", "convert")
    function((n // 128 + 1,), (128,), (x, h, b, h_back, b_back, rounded, fused, np.int32(n)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(h, x.astype(np.float16))
        np.testing.assert_array_equal(h_back, x.astype(np.float16).astype(np.float32))
        bits = x.view(np.uint32).astype(np.uint64)
        wanted = np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
        np.testing.assert_array_equal(b, wanted.astype(np.uint16))
        np.testing.assert_array_equal(b_back, (b.astype(np.uint32) << 16).view(np.float32))
        clipped = np.clip(np.rint(np.nan_to_num(x.astype(np.float64))), -(2**31), 2**31 - 1)
        np.testing.assert_array_equal(rounded, clipped.astype(np.int32))
        np.testing.assert_array_equal(fused[:, 0], x * x - x)
        small = np.abs(x) < 1e9  # the square is exact in float64
        once = (x.astype(np.float64) ** 2 - x).astype(np.float32)
        np.testing.assert_array_equal(fused[small, 1].astype(np.float32), once[small])


def _as_mask(flags):
    return sum(1 << lane for lane, flag in enumerate(flags) if flag)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [64, 44])
def test_warp_functions(anywhere, rng, order, n):
    x = rng.integers(0, 16, n).astype(np.int32)
    out = np.zeros((n, 8), np.int32)
    anywhere("intrinsics.cu", "warps")((1,), (n,), (x, out), order=order)
    for first in range(0, n, 32):
        v = x[first : first + 32]
        lanes = np.arange(v.size)
        up = np.where(lanes >= 2, v[lanes - 2], v)
        down = v[np.minimum(np.where(lanes % 4 < 3, lanes + 1, lanes), v.size - 1)]
        got = out[first : first + 32]
        np.testing.assert_array_equal(got[:, 0], v[3])
        np.testing.assert_array_equal(got[:, 1], up)
        np.testing.assert_array_equal(got[:, 2], down)
        np.testing.assert_array_equal(got[:, 3], v[lanes ^ 1])
        np.testing.assert_array_equal(got[:, 4].view(np.uint32), _as_mask(v & 1 == 1))
        np.testing.assert_array_equal(
            got[:, 5].view(np.uint32), [_as_mask(v & 3 == w & 3) for w in v]
        )
        np.testing.assert_array_equal(got[:, 6], v.max())
        np.testing.assert_array_equal(got[:, 7], (v == 5).any() + 2 + 4 * (lanes == 0))


def test_built_in_variables_in_three_dimensions(anywhere):
    for order in ORDERS:
        for workers in (1, 2):
            out = np.zeros((5 * 3 * 2, 4 * 3 * 2), np.int32)
            anywhere("intrinsics.cu", "where_am_i")(
                (5, 3, 2), (4, 3, 2), (out,), order=order, workers=workers, seed=9
            )
            blocks, threads = np.indices(out.shape)
            np.testing.assert_array_equal(out, 1000 * blocks + threads)


def test_printf_arrives_in_python(kernel, capsys):
    kernel("intrinsics.cu", "greet")((3,), (33,), (np.int32(3),))
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"block {i} of 3 says hello" for i in range(3)
    ]


def test_options_for_denormals_and_contraction():
    tiny = np.float32(2.0**-126)
    for options, expected in (((), tiny / 2), (("-ftz=true",), 0), (("--use_fast_math",), 0)):
        x = np.array([tiny])
        cudasim.Module(KERNELS / "intrinsics.cu", options).get_function("denormal")(
            (1,), (1,), (x,)
        )
        assert x[0] == expected
    x = np.array([1 + 2.0**-12, 1 + 2.0**-12, -1], np.float32)
    for option, expected in (("--fmad=true", 2.0**-11 + 2.0**-24), ("--fmad=false", 2.0**-11)):
        y = np.zeros(1, np.float32)
        cudasim.Module(KERNELS / "intrinsics.cu", [option]).get_function("contracted")(
            (1,), (1,), (x, y)
        )
        assert y[0] == np.float32(expected)
    code = 'extern "C" __global__ void arch(int* x) { x[0] = __CUDA_ARCH__; }'
    for options, expected in (
        ((), 900),
        (["-arch=sm_80"], 800),
        (["--gpu-architecture=sm_120"], 1200),
    ):
        y = np.zeros(1, np.int32)
        cudasim.Module("arch.cu", options, code=code).get_function("arch")((1,), (1,), (y,))
        assert y[0] == expected
    with pytest.raises(ValueError, match="'-O7' is unknown"):
        cudasim.Module(KERNELS / "intrinsics.cu", ["-O7"])
