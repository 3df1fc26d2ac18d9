"""Every operation of lowlevel.cpu.simd against NumPy, in each form the CPU can run.

The last tests run the others again as on lesser CPUs; test_simd_memory.py has what touches memory.
"""

import operator
import pathlib

import numpy as np
import pytest
from simd_cases import (
    LANES,
    LEFT,
    LOAD,
    RIGHT,
    SPECIAL,
    TINY,
    assert_same,
    inline,
    lanewise,
    random_floats,
    random_ints,
)

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


FLOAT_OPERATORS = (operator.add, operator.sub, operator.mul, operator.truediv)
COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq)


def binary(op):
    """``a <op> b`` as kernels write it, and for arithmetic ``a <op>= b``."""
    symbol = {
        "add": "+", "sub": "-", "mul": "*", "truediv": "/", "and_": "&", "or_": "|", "xor": "^",
        "lshift": "<<", "rshift": ">>", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
    }[op.__name__]  # fmt: skip
    scope = {}
    exec(f"def plain(a, b):\n    return a {symbol} b\n", scope)
    if op not in COMPARISONS:
        exec(f"def in_place(a, b):\n    a {symbol}= b\n    return a\n", scope)
    return [scope[name] for name in ("plain", "in_place") if name in scope]


def run_binary(function, a, b, dtype=None):
    """Not cached on disk: the functions come from `exec`, without a file."""
    op = kernel(function, inline=True)
    load, load_b = LOAD[a.dtype.name], LOAD[b.dtype.name]
    out = np.zeros(len(a), dtype or a.dtype)

    @kernel
    def run(a, b, out):
        for i in range(0, len(out), LANES):
            simd.store(out, i, op(load(a, i), load_b(b, i)))

    run(a, b, out)
    return out


@pytest.mark.parametrize("op", FLOAT_OPERATORS, ids=lambda op: op.__name__)
def test_float_operators(rng, op):
    a, b = (np.concatenate([x, random_floats(rng, 1600)]) for x in (LEFT, RIGHT))
    for function in binary(op):
        assert_same(run_binary(function, a, b), op(a, b))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
@pytest.mark.parametrize("scalar", [0.1, np.float32(0.1), -0.0])
def test_float_scalars_on_the_right_are_rounded_to_float32(rng, name, scalar):
    (op, _), x = binary(getattr(operator, name)), random_floats(rng, 160)
    op = inline(op)
    result = lanewise(inline(lambda v: op(v, scalar)), x)
    assert_same(result, getattr(operator, name)(x, np.float32(scalar)))


INT_OPERATORS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.and_,
    operator.or_,
    operator.xor,
)


@pytest.mark.parametrize("op", INT_OPERATORS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", ["int32", "uint16", "uint8"])
def test_int_operators_wrap_around(rng, op, dtype):
    a, b = (random_ints(rng, 320).astype(dtype) for _ in range(2))
    for function in binary(op):
        assert_same(run_binary(function, a, b), op(a, b))


@pytest.mark.parametrize("dtype", ["int32", "uint16", "uint8"])
def test_shifts_are_of_bit_patterns(rng, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    a = random_ints(rng, 320).astype(dtype)
    b = rng.integers(0, bits, 320).astype(dtype)
    pattern, amount = a.view(f"u{bits // 8}"), b.view(f"u{bits // 8}")
    for function in binary(operator.lshift):
        assert_same(run_binary(function, a, b), (pattern << amount).view(dtype))
    for function in binary(operator.rshift):
        assert_same(run_binary(function, a, b), (pattern >> amount).view(dtype))


@pytest.mark.parametrize("dtype", ["int32", "uint16", "uint8"])
def test_int_scalars_on_the_right(rng, dtype):
    """Scalars are cut to the lanes' width, whatever integer they are."""
    a = random_ints(rng, 160).astype(dtype)

    @inline
    def several(v):
        return ((v * 3 + np.uint8(200)) ^ -1) - 70_000

    assert_same(lanewise(several, a), ((a * 3 + 200) ^ -1) - 70_000 if dtype == "int32" else (
        (((a.astype(np.int64) * 3 + 200) ^ -1) - 70_000).astype(dtype)
    ))  # fmt: skip
    assert_same(lanewise(inline(lambda v: (v & 12) >> 2 << 1 | 1), a), (a & 12) >> 2 << 1 | 1)


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_shift_right_signed(rng, dtype):
    a = random_ints(rng, 320).astype(dtype)
    signed = a.view("i4" if dtype == "int32" else "i2")
    for n in (0, 1, 7, 15):
        result = lanewise(inline(lambda v, n=n: simd.shift_right_signed(v, n)), a)
        assert_same(result, (signed >> n).view(dtype))


@pytest.mark.parametrize("op", COMPARISONS, ids=lambda op: op.__name__)
def test_comparisons_and_select(rng, op):
    """Ordered: no comparison with NaN holds. Integers are signed."""
    (compare,) = map(inline, binary(op))
    a, b = (np.concatenate([x, random_floats(rng, 1600)]) for x in (LEFT, RIGHT))
    result = lanewise(inline(lambda a, b: simd.select(compare(a, b), a, b)), a, b)
    assert_same(result, np.where(op(a, b), a, b))
    a, b = random_ints(rng, 1600), random_ints(rng, 1600)
    b[::3] = a[::3]
    result = lanewise(inline(lambda a, b: simd.select(compare(a, b), a, b)), a, b)
    assert_same(result, np.where(op(a, b), a, b))


@pytest.mark.parametrize("op", COMPARISONS, ids=lambda op: op.__name__)
def test_comparisons_with_scalars(op):
    (compare,) = map(inline, binary(op))
    x = np.resize(SPECIAL, 32)
    one, zero = np.float32(1), np.float32(0)
    result = lanewise(
        inline(lambda v: simd.select(compare(v, 1.5), simd.splat(one), simd.splat(zero))), x
    )
    assert_same(result, op(x, np.float32(1.5)).astype(np.float32))


# ---------------------------------------------------------------- making and converting vectors


def test_splat_and_iota(rng):
    @kernel
    def fill(x, n, floats, ints, counted):
        simd.store(floats, 0, simd.splat(x))
        simd.store(ints, 0, simd.splat(n))
        simd.store(counted, 0, simd.iota())

    floats, (ints, counted) = np.zeros(LANES, "f4"), np.zeros((2, LANES), "i4")
    for x, n in ((np.float32(0.1), 7), (np.nan, -1), (0.1, 2**31 - 1), (-0.0, 2**32 + 5)):
        fill(x, n, floats, ints, counted)
        assert_same(floats, np.full(LANES, x, np.float32))
        assert_same(ints, np.full(LANES, n & 0xFFFFFFFF, np.uint32).view(np.int32))
        assert_same(counted, np.arange(LANES, dtype=np.int32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_widening(dtype):
    every = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).astype(dtype)
    signed = every.view("i1" if dtype == "uint8" else "i2")
    assert_same(lanewise(simd.widen, every, dtype="i4"), every.astype("i4"))
    assert_same(lanewise(simd.widen_signed, every, dtype="i4"), signed.astype("i4"))


def test_narrowing(rng):
    a = random_ints(rng, 320)
    assert_same(lanewise(simd.narrow, a, dtype="u1"), (a & 255).astype("u1"))


def test_ints_to_floats_and_back(rng):
    a = random_ints(rng, 1600)
    assert_same(lanewise(simd.to_f32, a, dtype="f4"), a.astype("f4"))
    x = np.concatenate([rng.uniform(-2e9, 2e9, 160), rng.uniform(-9, 9, 160)]).astype("f4")
    x[:6] = [-0.9999999, 0.9999999, -0.0, TINY, -(2.0**31), 2.0**31 - 128]
    assert_same(lanewise(simd.to_i32, x, dtype="i4"), np.trunc(x).astype("i4"))


def test_bit_casts(rng):
    ints = random_ints(rng, 160)
    floats = lanewise(simd.as_floats, ints, dtype="f4")
    np.testing.assert_array_equal(floats.view("i4"), ints)  # NaN's bits too
    np.testing.assert_array_equal(lanewise(simd.as_i32x16, floats, dtype="i4"), ints)

    @kernel
    def bytes_of(a, out):
        for i in range(0, len(a), LANES):
            simd.store(out, 4 * i, simd.as_u8x64(simd.load_i32x16(a, i)))

    out = np.zeros(640, np.uint8)
    bytes_of(ints, out)
    np.testing.assert_array_equal(out, ints.view(np.uint8))


def test_halves_of_bytes_and_joining_them(rng):
    @kernel
    def swap_quarters(a, out):
        x = simd.load_u8x64(a, 0)
        low, high = simd.lower_half(x), simd.upper_half(x)
        low = simd.join(simd.upper_half(low), simd.lower_half(low))
        simd.store(out, 0, simd.join(high, low))

    a, out = rng.integers(0, 256, 64, dtype=np.uint8), np.zeros(64, np.uint8)
    swap_quarters(a, out)
    assert_same(out, np.concatenate([a[32:], a[16:32], a[:16]]))


ALL_HALVES = np.arange(2**16, dtype=np.uint16)


def test_every_half_to_float():
    expected = ALL_HALVES.view(np.float16).astype(np.float32)
    assert_same(lanewise(simd.half_to_f32, ALL_HALVES, dtype="f4"), expected)

    @kernel
    def one_by_one(halves, out, repeated):
        for i in range(len(halves)):
            out[i] = simd.half_to_f32(halves[i])
            simd.store(repeated, LANES * i, simd.splat_half(halves[i]))

    out = np.zeros(2**16, np.float32)
    repeated = np.zeros(LANES * 2**16, np.float32)
    one_by_one(ALL_HALVES, out, repeated)
    assert_same(out, expected)
    assert_same(repeated, np.repeat(expected, LANES))


def test_floats_to_halves(rng):
    """Halves, the ties between neighbours, what lies beside those, and random bits of all sizes."""
    halves = ALL_HALVES.view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    largest = np.float32([65519.996, 65520, 65520.004, -65520, 3e38, -3e38])
    beside = [np.nextafter(ties, np.float32(to)) for to in (np.inf, -np.inf)]
    floats = np.concatenate([halves, ties, *beside, largest, SPECIAL, random_floats(rng, 2**18)])
    floats = np.resize(floats, -(-len(floats) // LANES) * LANES)
    expected = floats.astype(np.float16)

    @kernel
    def one_by_one(floats, out):
        for i in range(len(floats)):
            out[i] = simd.f32_to_half(floats[i])

    scalars = np.zeros(len(floats), np.uint16)
    one_by_one(floats, scalars)
    for bits in (lanewise(simd.f32_to_half, floats, dtype="u2"), scalars):
        nan = np.isnan(expected)
        assert np.isnan(bits.view(np.float16)[nan]).all()
        np.testing.assert_array_equal(bits[~nan], expected.view(np.uint16)[~nan])


def test_every_bfloat_to_float():
    expected = (ALL_HALVES.astype(np.uint32) << 16).view(np.float32)
    assert_same(lanewise(simd.bfloat_to_f32, ALL_HALVES, dtype="f4"), expected)

    @kernel
    def one_by_one(halves, out):
        for i in range(len(halves)):
            out[i] = simd.bfloat_to_f32(halves[i])

    out = np.zeros(2**16, np.float32)
    one_by_one(ALL_HALVES, out)
    assert_same(out, expected)


@pytest.mark.parametrize("dtype", LOAD)
def test_extract_a_variable_lane(rng, dtype):
    load = LOAD[dtype]

    @kernel
    def backwards(a, out):
        x = load(a, 0)
        for i in range(LANES):
            out[i] = simd.extract(x, LANES - 1 - i)

    a, out = random_ints(rng, LANES).view(np.uint8)[: 16 * np.dtype(dtype).itemsize], None
    a = a.view(dtype)
    out = np.zeros_like(a)
    backwards(a, out)
    np.testing.assert_array_equal(out.view(np.uint8), a[::-1].copy().view(np.uint8))


# ---------------------------------------------------------------- float arithmetic


def fused(a, b, c):
    """float32(a * b + c) with one rounding, by float64 sums rounded to odd."""
    product = a.astype(np.float64) * b  # exact
    total = product + c
    part = total - product
    rest = (product - (total - part)) + (c - part)  # what rounding `total` lost, exactly
    towards = np.where(rest > 0, np.inf, -np.inf)
    is_even = total.view(np.int64) % 2 == 0
    to_odd = np.isfinite(total) & (rest != 0) & is_even
    return np.where(to_odd, np.nextafter(total, towards), total).astype(np.float32)


def close_floats(rng, n):
    """Floats of similar magnitudes, whose sums cancel; some are special."""
    floats = rng.standard_normal(n).astype(np.float32) * 2.0 ** rng.integers(-20, 20)
    return np.where(rng.random(n) < 0.1, rng.choice(SPECIAL, n), floats).astype(np.float32)


def test_fma_rounds_once(rng):
    a, b, c = (close_floats(rng, 16000) for _ in range(3))
    c[::3] = -(a[::3] * b[::3])  # what is left of the product is its rounding error
    assert_same(lanewise(simd.fma, a, b, c), fused(a, b, c))
    a, b, c = (random_floats(rng, 16000) for _ in range(3))
    assert_same(lanewise(simd.fma, a, b, c), fused(a, b, c))


def test_multiply_add_rounds_once_or_twice(rng):
    a, b, c = (close_floats(rng, 16000) for _ in range(3))
    result = lanewise(simd.multiply_add, a, b, c)
    once, twice = fused(a, b, c), a * b + c
    same = (result == once) & (np.signbit(result) == np.signbit(once))  # an underflow's zero too
    assert_same(result, np.where(same, once, twice))
    a, b = (rng.integers(-4095, 4096, 1600).astype(np.float32) for _ in range(2))
    c = rng.integers(-(2**20), 2**20, 1600).astype(np.float32)
    assert_same(lanewise(simd.multiply_add, a, b, c), fused(a, b, c))  # exact products


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (simd.negate, np.negative),
        (simd.absolute, np.abs),
        (simd.square_root, np.sqrt),
        (simd.round_even, np.rint),
    ],
    ids=["negate", "absolute", "square_root", "round_even"],
)
def test_unary(rng, op, expected):
    x = np.concatenate([LEFT, random_floats(rng, 1600), rng.uniform(-99, 99, 160).astype("f4")])
    assert_same(lanewise(op, x), expected(x))


def test_divide(rng):
    a, b = (np.concatenate([x, random_floats(rng, 1600)]) for x in (LEFT, RIGHT))
    assert_same(lanewise(simd.divide, a, b), a / b)


@pytest.mark.parametrize(
    ("op", "compare"),
    [(simd.maximum, np.greater), (simd.minimum, np.less)],
    ids=["maximum", "minimum"],
)
def test_maximum_and_minimum(rng, op, compare):
    """A NaN on the right stays, one on the left is dropped; of equal zeros the right one stays."""
    a, b = (np.concatenate([x, random_floats(rng, 1600)]) for x in (LEFT, RIGHT))
    assert_same(lanewise(op, a, b), np.where(compare(a, b), a, b))
    a, b = random_ints(rng, 1600), random_ints(rng, 1600)
    assert_same(lanewise(op, a, b), np.where(compare(a, b), a, b))


def test_any_set():
    @kernel
    def any_negative(x, out):
        for i in range(len(out)):
            out[i] = simd.any_set(simd.load_f32x16(x, LANES * i) < np.float32(0))

    x = np.ones((LANES + 2, LANES), np.float32)
    x[np.arange(LANES), np.arange(LANES)] = -1  # each lane alone, then none, then all
    x[-1] = -1
    out = np.zeros(LANES + 2, np.bool_)
    any_negative(x.ravel(), out)
    np.testing.assert_array_equal(out, [True] * LANES + [False, True])


def reduced(op, x, dtype):
    load = LOAD[x.dtype.name]

    @kernel
    def run(x, out):
        for i in range(len(out)):
            out[i] = op(load(x, LANES * i))

    out = np.zeros(len(x) // LANES, dtype)
    run(x, out)
    return out


def pairwise(x):
    x = x.reshape(-1, LANES)
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x[:, 0]


def test_sum_lanes(rng):
    for x in (close_floats(rng, 1600), random_floats(rng, 1600), random_ints(rng, 1600)):
        assert_same(reduced(simd.sum_lanes, x, x.dtype), pairwise(x))


def test_max_lanes(rng):
    """NaN is ignored; which of two zeros comes out is not said."""
    x = np.concatenate([random_floats(rng, 1600), np.full(LANES, np.nan), np.full(LANES, -np.inf)])
    x = x.astype(np.float32)
    for lane in range(LANES):  # the only number, the only NaN
        x[lane * LANES : (lane + 1) * LANES] = np.nan
        x[lane * LANES + lane] = -lane
        x[(LANES + lane) * LANES + lane] = np.nan
    expected = np.fmax.reduce(x.reshape(-1, LANES), axis=1)
    np.testing.assert_array_equal(reduced(simd.max_lanes, x, "f4"), expected)


# ---------------------------------------------------------------- lookups and dot products


def with_table(op, load, table, index, dtype):
    """`op` of one table and each 16 lanes of `index`."""
    load_index = LOAD[index.dtype.name]

    @kernel
    def run(table, index, out):
        t = load(table, 0)
        for i in range(0, len(index), LANES):
            simd.store(out, i, op(t, load_index(index, i)))

    out = np.zeros(len(index), dtype)
    run(table, index, out)
    return out


def test_lookup16(rng):
    """Only the index's low four bits count."""
    index = np.concatenate([np.arange(32, dtype=np.int32), random_ints(rng, 1600)])
    for table in (random_floats(rng, LANES), random_ints(rng, LANES)):
        result = with_table(simd.lookup16, LOAD[table.dtype.name], table, index, table.dtype)
        np.testing.assert_array_equal(result.view("i4"), table[index & 15].view("i4"))


def test_lookup16_words(rng):
    @kernel
    def run(table, index, out):
        simd.store(
            out, 0, simd.lookup16_words(simd.load_u16x16(table, 0), simd.load_u8x32(index, 0))
        )

    for _ in range(20):
        table = rng.integers(0, 2**16, LANES, dtype=np.uint16)
        index = rng.integers(0, 16, 32, dtype=np.uint8)
        out = np.zeros(32, np.uint16)
        run(table, index, out)
        assert_same(out, table[index])


def test_lookup_far(rng):
    """Entries of a table in memory, of one word and of two."""

    @kernel
    def run(table, index, out):
        i = simd.load_i32x16(index, 0)
        simd.store(out, 0, simd.lookup_far(table, i))
        first, second = simd.lookup_far_pair(table, i)
        simd.store(out, 16, first)
        simd.store(out, 32, second)

    table = random_ints(rng, 2048)
    for _ in range(20):
        index = rng.integers(0, 1024, LANES, dtype=np.int32)
        out = np.zeros(3 * LANES, np.int32)
        run(table, index, out)
        assert_same(out, np.concatenate([table[index], table[2 * index], table[2 * index + 1]]))


def test_bytes_of(rng):
    @kernel
    def run(pair, out):
        simd.store(out, 0, simd.bytes_of(pair[0], pair[1]))

    pair = rng.integers(-(2**63), 2**63, 2, dtype=np.int64)
    out = np.zeros(16, np.uint8)
    run(pair, out)
    assert_same(out, pair.view(np.uint8))


def test_bytes16(rng):
    table = rng.integers(0, 256, 640, dtype=np.uint8)
    index = rng.integers(0, 16, 640, dtype=np.uint8)
    loads = [simd.load_u8x64] * 2
    result = lanewise(simd.bytes16, table, index, lanes=64, loads=loads)
    assert_same(result, np.take_along_axis(table.reshape(-1, 16), index.reshape(-1, 16), 1).ravel())


def test_dot_u8s8(rng):
    """Exact, where the sum of two products does not fit 16 bits too; the sum wraps around."""

    @kernel
    def run(acc, unsigned, signed, out):
        for i in range(0, len(acc), LANES):
            u, s = simd.load_u8x64(unsigned, 4 * i), simd.load_u8x64(signed, 4 * i)
            simd.store(out, i, simd.dot_u8s8(simd.load_i32x16(acc, i), u, s))

    n = 100 * LANES
    acc = random_ints(rng, n)
    unsigned, signed = rng.integers(0, 256, (2, 4 * n), dtype=np.uint8)
    extremes = rng.random(4 * n) < 0.5
    unsigned[extremes] = 255
    signed[extremes] = rng.choice(np.uint8([127, 128, 129]), extremes.sum())
    unsigned[:64], signed[:64], unsigned[64:128], signed[64:128] = 255, 127, 255, 128
    out = np.zeros_like(acc)
    run(acc, unsigned, signed, out)
    products = unsigned.astype(np.int64) * signed.view(np.int8)
    expected = acc.astype(np.int64) + products.reshape(-1, 4).sum(1)
    assert_same(out, expected.astype(np.int32))


def test_float_of_bits(rng):
    @kernel
    def run(bits, out):
        for i in range(len(bits)):
            out[i] = simd.float_of(bits[i])

    bits = np.concatenate([SPECIAL.view(np.int32), random_ints(rng, 300)])
    out = np.empty(len(bits), np.float32)
    run(bits, out)
    np.testing.assert_array_equal(out.view(np.int32), bits)


# ---------------------------------------------------------------- all of it


def test_every_operation_is_tested():
    """Every intrinsic of simd occurs in these files."""
    public = {
        name
        for name, value in vars(simd).items()
        if not name.startswith("_") and type(value).__name__ == "_Intrinsic"
    }
    assert len(public) > 50
    text = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_simd*.py"))
    assert not {name for name in public if f"simd.{name}" not in text}
