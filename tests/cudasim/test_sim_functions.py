"""Functions that CUDA has and C has not: directed rounding, special functions, packed integers."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from sim_kernels import ORDERS


def _neighbour(value, up, dtype):
    """The largest float of `dtype` not above `value`, a Fraction, or the smallest not below."""
    nearest = dtype(float(value))
    if up and Fraction(float(nearest)) < value:
        return np.nextafter(nearest, dtype(np.inf))
    if not up and Fraction(float(nearest)) > value:
        return np.nextafter(nearest, dtype(-np.inf))
    return nearest


def _square_root(value, up):
    root = np.float32(math.sqrt(value))
    if up and Fraction(float(root)) ** 2 < value:
        return np.nextafter(root, np.float32(np.inf))
    if not up and Fraction(float(root)) ** 2 > value:
        return np.nextafter(root, np.float32(0))
    return root


def test_directed_rounding(anywhere, rng):
    n = 100
    a, b = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    out = np.zeros((n, 3, 8), np.float32)
    anywhere("functions.cu", "rounded")((4,), (32,), (a, b, out, np.int32(n)))
    for i in range(n):
        x, y = Fraction(float(a[i])), Fraction(float(b[i]))
        values = [x + y, x - y, x * y, x / y, None, x * y + x, Fraction(float(a[i]) * float(b[i]))]
        for mode, name in enumerate(("rz", "ru", "rd")):
            up = [name == "ru" or (name == "rz" and v is not None and v < 0) for v in values]
            expected = [
                _neighbour(v, to_upper, np.float32)
                if v is not None
                else _square_root(abs(x), name == "ru")
                for v, to_upper in zip(values, up, strict=True)
            ]
            expected.append(_neighbour(x, name == "ru" or (name == "rz" and x < 0), np.float16))
            np.testing.assert_array_equal(out[i, mode], np.float32(expected), err_msg=f"{name} {i}")


def test_special_functions(anywhere):
    x = np.concatenate([np.linspace(0.01, 0.99, 97), [0.5, 0.25, 0.75]])
    n = x.size
    out, single = np.zeros((n, 9)), np.zeros((n, 9), np.float32)
    anywhere("functions.cu", "special")((4,), (32,), (x, out, single, np.int32(n)))
    normal = NormalDist()
    ways = [
        lambda v: math.sin(math.pi * v),
        lambda v: math.cos(math.pi * v) if v != 0.5 else 0.0,
        lambda v: normal.cdf(3 * v),
        None,
        None,
        lambda v: normal.inv_cdf(v) if v != 0.5 else 0.0,
        None,
        lambda v: math.sqrt(v * v + 13),
        lambda v: 1 / math.sqrt(v * v + 29),
    ]
    for column, way in enumerate(ways):
        if way is not None:
            expected = [way(v) for v in x]
            np.testing.assert_allclose(out[:, column], expected, rtol=1e-13, atol=2e-16)
        np.testing.assert_allclose(single[:, column], out[:, column], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose([math.erf(v) for v in out[:, 3]], x, rtol=1e-14)
    np.testing.assert_allclose([math.erfc(v) for v in out[:, 4]], x, rtol=1e-14)
    # erfcx by its continued fraction, where that converges fast
    large = 30 * x > 4
    tail = [_erfcx(30 * v) for v in x[large]]
    np.testing.assert_allclose(out[large, 6], tail, rtol=1e-12)


def _erfcx(x):
    fraction = x
    for k in range(120, 0, -1):
        fraction = x + k / 2 / fraction
    return 1 / (fraction * math.sqrt(math.pi))


def test_packed_integers(anywhere, rng):
    n = 200
    a, b = (rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    a[:4] = [0x80008000, 0x80808080, 0, 0xFFFFFFFF]
    b[:4] = [0x80008000, 0x7F7F7F7F, 0x80808080, 1]
    out = np.zeros((n, 34), np.uint32)
    anywhere("functions.cu", "packed")((7,), (32,), (a, b, out, np.int32(n)))
    for first, bits in ((0, 16), (15, 8)):
        unsigned, signed = np.dtype(f"u{bits // 8}"), np.dtype(f"i{bits // 8}")
        x, y = (v.view(unsigned).reshape(n, -1).astype(np.int64) for v in (a, b))
        s, t = (v.view(signed).reshape(n, -1).astype(np.int64) for v in (a, b))
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        expected = [
            np.clip(s + t, low, high), np.maximum(x - y, 0), np.abs(s), np.minimum(np.abs(s), high),
            -s, np.minimum(-s, high), np.abs(s - t), (x + y + 1) >> 1, (x + y) >> 1,
            np.where(s >= t, -1, 0), np.where(x < y, -1, 0), x == y, None, None, np.minimum(s, t),
        ]  # fmt: skip
        for i, parts in enumerate(expected):
            if parts is not None:
                words = (parts.astype(np.int64) % 2**bits).astype(unsigned).view(np.uint32).ravel()
                np.testing.assert_array_equal(out[:, first + i], words, err_msg=f"{bits} {i}")
        np.testing.assert_array_equal(out[:, first + 12], np.abs(s - t).sum(1))
        np.testing.assert_array_equal(out[:, first + 13], np.abs(x - y).sum(1))
    s, t = a.view(np.int32).astype(np.int64), b.view(np.int32).astype(np.int64)
    x, y = a.astype(np.int64), b.astype(np.int64)
    high = [(((int(u) << 32) + 2**63) % 2**64 - 2**63) * -int(v) >> 64 for u, v in zip(x, y, strict=True)]  # fmt: skip
    for i, words in enumerate([(s + t) >> 1, (s + t + 1) >> 1, high, None]):
        words = words if words is not None else np.abs(x - y) + 7 + ((x + y + 1) >> 1) + x
        np.testing.assert_array_equal(out[:, 30 + i], np.array([int(w) % 2**32 for w in words], np.uint32))  # fmt: skip


def test_a_wait_by_the_clock_lets_the_others_run(kernel):
    for order in ORDERS:
        out = np.zeros(64, np.float32)
        kernel("functions.cu", "wait_by_clock")((1,), (64,), (out,), order=order)
        np.testing.assert_array_equal(out, np.float32(np.pi))
