"""quant.matmul against float64 products of the gguf package's dequantised weights."""

import json
import threading

import numpy as np
import pytest
from matmul_cases import (
    EXACT_ERROR,
    EXTREME_BYTES,
    extreme_tensor,
    random_tensor,
    random_x,
    weights_of,
)
from quant_cases import FIRST_OF_STRUCTURE

import lowlevel
from lowlevel.cpu import simd
from quant.cpu.matmul import layouts
from quant.cpu.matmul.block_formats import LAYOUTS
from quant.formats import FORMATS, block_format
from quant.matmul import matmul, matmul_plan, matmul_scratch_bytes
from quant.quantize import quantize
from quant.tensor import QuantTensor

FLOATS = [row.name for row in FORMATS.values() if row.is_float]
BLOCKS = [row.name for row in FORMATS.values() if not row.is_float]


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def error(y, x, w):
    """Largest error over the product of the norms of its two vectors."""
    x = x.astype(np.float64)
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    return np.max(np.abs(y - x @ w.T) / np.maximum(norms, 1e-30), initial=0.0)


def byte_bound(x, w, block_weights):
    """What rounding x to half a step of its blocks can do at most, and float32's share."""
    x = np.abs(x.astype(np.float64))
    blocks = x.reshape(len(x), -1, block_weights)
    half_steps = np.repeat(blocks.max(axis=2) / 254, block_weights, axis=1)
    return (half_steps * 1.0001 + 1e-6 * x) @ np.abs(w).T + 1e-30


def check_product(rng, name, exact, n, n_rows, columns):
    t, x = random_tensor(rng, name, n_rows, columns), random_x(rng, n, columns)
    y = matmul(x, t, exact=exact, n_threads=2)
    assert y.shape == (n, n_rows) and y.dtype == np.float32
    w = weights_of(t)
    if exact or name in FLOATS:
        assert error(y, x, w) <= EXACT_ERROR
    else:
        bound = byte_bound(x, w, t.format.block_weights)
        assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()


def odd_columns(rng, name):
    """Few and many blocks; 32-weight formats in widths that are no multiple of 256."""
    unit = block_format(name).block_weights
    return unit * int(rng.choice([1, 3, 7, 11])) if unit > 1 else int(rng.integers(1, 700))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n, n_rows", [(1, 1), (2, 37), (3, 16), (7, 67), (29, 131)])
def test_bytes_against_float64(rng, name, n, n_rows):
    check_product(rng, name, False, n, n_rows, odd_columns(rng, name))


@pytest.mark.parametrize("name", [*FLOATS, *BLOCKS])
@pytest.mark.parametrize("n, n_rows", [(1, 1), (2, 37), (5, 33), (29, 131)])
def test_exact_against_float64(rng, name, n, n_rows):
    check_product(rng, name, True, n, n_rows, odd_columns(rng, name))


@pytest.mark.parametrize("name", BLOCKS)
def test_accuracy_of_bytes(rng, name):
    """As the docstring says; ggml's own products (Q8_0 and Q8_K activations) have the same error."""
    columns = 2048
    # So many rows of x that the root mean square is known to a 300th, also of alike rows of weights.
    t, x = random_tensor(rng, name, 50, columns), random_x(rng, 2000, columns)
    w = weights_of(t)
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    errors = (matmul(x, t) - x.astype(np.float64) @ w.T) / norms
    said = {32: 0.0055, 64: 0.0061, 128: 0.0066, 256: 0.0071}[t.format.block_weights]
    root_mean_square = np.sqrt(np.mean(errors**2)) * np.sqrt(columns)
    assert 0.95 * said <= root_mean_square <= said


def test_a_few_products_of_each_form(rng):
    """What is checked on lesser CPUs; without AVX2 fewer formats, because they compile slowly."""
    portable = simd.LEVEL == "portable"
    # What differs on lesser CPUs is the same in formats that are alike.
    names = [*FIRST_OF_STRUCTURE, "Q5_0", "IQ1_M"]
    for name in ["IQ4_NL", "Q2_K", "Q3_K"] if portable else names:
        for n, n_rows in ((1, 19), (7, 33)):
            check_product(rng, name, False, n, n_rows, odd_columns(rng, name))
    for name in ["F16"] if portable else ["F16", "BF16", "Q4_K"]:
        check_product(rng, name, True, 5, 21, odd_columns(rng, name))
        if name in FLOATS:
            check_product(rng, name, True, 1, 21, odd_columns(rng, name))


def pairs_layout(name):
    """The `PanelLayout` of a format on a CPU with AVX2, which this one need not be."""
    given, block = LAYOUTS[name], block_format(name)
    if given.sums:
        return given
    n_factors = block.block_weights // block.sub_block if block.scales else 0
    return layouts._layout_of_pairs(block, given.n_segments, -block.codes[0], n_factors)


def test_sums_of_pairs_fit():
    """With AVX2: what sums of a run are kept in holds the largest ones, and before them two products."""
    found = set()
    for name in BLOCKS:
        block, layout = block_format(name), pairs_layout(name)
        found.add(layout.sums)
        if layout.sums == "signed":
            assert layout.shift == 0 and min(block.codes) >= -128
            continue
        assert 2 * 127 * (block.codes[1] + layout.shift) < 2**15  # vpmaddubsw saturates
        assert block.codes[0] + layout.shift >= 0
        if layout.sums == "words":
            n_products = 16 * layout.run_steps // 2
            assert n_products * 127 * max(map(abs, block.codes)) < 2**15
    assert found == {"words", "dwords", "signed"}


@pytest.mark.parametrize("name", BLOCKS)
def test_extreme_bytes(name):
    """The largest integers on both sides, where a narrow sum of products would overflow."""
    for byte in EXTREME_BYTES:
        t = extreme_tensor(name, byte, 5, 4)
        for sign in (1, -1):
            x = np.full((2, t.columns), sign * 127.0, np.float32)
            found, expected = matmul(x, t), x.astype(np.float64) @ weights_of(t).T
            norms = np.linalg.norm(x[0]) * np.linalg.norm(weights_of(t), axis=1)
            assert (np.abs(found - expected) <= EXACT_ERROR * norms).all()


@pytest.mark.parametrize("exact", [False, True])
def test_same_bits_in_any_company(rng, exact):
    """Batch size, place in the batch and number of threads do not change a row's result."""
    t = random_tensor(rng, "Q2_K", 71, 1280)
    x = random_x(rng, 40, 1280)
    together = matmul(x, t, exact=exact, n_threads=1)
    for n_threads in (2, 3, 7):
        np.testing.assert_array_equal(together, matmul(x, t, exact=exact, n_threads=n_threads))
    for first, n in ((0, 1), (5, 2), (9, 3), (20, 4), (31, 5), (1, 8)):
        some = matmul(x[first : first + n], t, exact=exact, n_threads=2)
        np.testing.assert_array_equal(together[first : first + n], some)


@pytest.mark.parametrize("name", [*FLOATS, *BLOCKS])
def test_one_row_alone(rng, name):
    """One row of x has kernels of its own: the same bits as in a batch, but for the order of floats' sums."""
    t = random_tensor(rng, name, 77, odd_columns(rng, name))
    x = random_x(rng, 7, t.columns)
    together = matmul(x, t)
    for i in range(7):
        alone = matmul(x[i : i + 1], t)[0]
        if name in FLOATS:
            assert error(alone[None], x[i : i + 1], weights_of(t)) <= EXACT_ERROR
        else:
            np.testing.assert_array_equal(alone, together[i])
        for n_threads in (1, 3):
            np.testing.assert_array_equal(alone, matmul(x[i : i + 1], t, n_threads=n_threads)[0])


@pytest.mark.parametrize("exact", [False, True])
def test_experts(rng, exact):
    t = random_tensor(rng, "IQ4_NL", 9, 45, 352)
    x = random_x(rng, 50, 352)
    experts = rng.choice([0, 2, 3, 8], 50)  # some without rows
    y = matmul(x, t, exact=exact, experts=experts)
    for e in range(9):
        rows = experts == e
        np.testing.assert_array_equal(y[rows], matmul(x[rows], t[e], exact=exact))


def test_masked_experts_are_called_experts():
    x, t = np.ones((2, 32), "f4"), QuantTensor(np.zeros((3, 4, 34), "u1"), "Q8_0", (3, 4, 32))
    with pytest.raises(TypeError, match=r"^experts: expected a NumPy array, got MaskedArray"):
        matmul(x, t, experts=np.ma.masked_array([0, 1]))


def test_experts_views_and_out(rng):
    """Strided stacks, lists as indices, one row, everything to one expert."""
    t = random_tensor(rng, "Q4_0", 8, 33, 64)[1::3]
    x = random_x(rng, 7, 64)
    for experts in ([2] * 7, [0, 1, 2, 0, 1, 2, 0]):
        out = np.full((7, 40), np.nan, np.float32)
        y = matmul(x, t, experts=experts, out=out[:, 3:36])
        assert np.isnan(out[:, :3]).all() and np.isnan(out[:, 36:]).all()
        for i, e in enumerate(experts):
            np.testing.assert_array_equal(y[i : i + 1], matmul(x[i : i + 1], t[e]))


@pytest.mark.parametrize("exact", [False, True])
def test_strides(rng, exact):
    """x and out with gaps, reversed and repeated rows; rows of t with gaps; read-only input."""
    t = random_tensor(rng, "Q6_K", 70, 512)
    wide = random_x(rng, 11, 600)
    x = wide[::-2, 40:552]
    expected = matmul(x.copy(), t, exact=exact)
    x.flags.writeable = False
    out = np.full((12, 90), 7.0, np.float32)
    y = matmul(x, t, out=out[::-2, 10:80], exact=exact)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(out[::-2, 10:80], expected)
    assert (out[::2] == 7).all() and (out[:, :10] == 7).all() and (out[:, 80:] == 7).all()
    np.testing.assert_array_equal(matmul(x, t[3:60:4], exact=exact), expected[:, 3:60:4])
    repeated = np.broadcast_to(x[:1], (5, 512))
    np.testing.assert_array_equal(
        matmul(repeated, t, exact=exact), np.repeat(expected[:1], 5, axis=0)
    )


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_to_do(rng, exact):
    t = random_tensor(rng, "Q8_0", 5, 64)
    assert matmul(random_x(rng, 0, 64), t, exact=exact).shape == (0, 5)
    assert matmul(random_x(rng, 3, 64), t[:0], exact=exact).shape == (3, 0)
    empty = QuantTensor(np.empty((5, 0), np.uint8), "Q8_0", (5, 0))
    np.testing.assert_array_equal(
        matmul(random_x(rng, 3, 0), empty, exact=exact), np.zeros((3, 5), np.float32)
    )
    stack = random_tensor(rng, "Q8_0", 2, 5, 64)
    assert matmul(random_x(rng, 0, 64), stack, experts=[], exact=exact).shape == (0, 5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["IQ4_NL", "Q4_K"])
def test_not_finite(rng, name, special):
    t = random_tensor(rng, name, 50, 768)
    x = random_x(rng, 9, 768)
    clean = matmul(x, t)
    x[4, int(rng.integers(768))] = special
    y = matmul(x, t)
    assert np.isnan(y[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(y[others], clean[others])
    exact = matmul(x, t, exact=True)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64) @ weights_of(t).T
    np.testing.assert_array_equal(np.isnan(exact), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(exact[infinite], expected[infinite])


def test_ranges_of_x(rng):
    """Tiny, huge and zero blocks of x, and blocks of very different size beside each other."""
    t = random_tensor(rng, "Q8_0", 20, 256)
    w = weights_of(t)
    base = random_x(rng, 3, 256)
    uneven = base * np.repeat(10.0 ** rng.integers(-20, 20, 8), 32).astype(np.float32)
    for x in (*(base * np.float32(scale) for scale in (1e-25, 1e-10, 1e10, 1e30)), uneven):
        assert (np.abs(matmul(x, t) - x.astype(np.float64) @ w.T) <= byte_bound(x, w, 32)).all()
    np.testing.assert_array_equal(matmul(base * 0, t), np.zeros((3, 20)))
    np.testing.assert_array_equal(matmul(base * np.float32(1e-38), t), np.zeros((3, 20)))


# ---------------------------------------------------------------- scratch


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["Q2_K", "IQ4_NL", "F16"])
def test_scratch_is_the_plan(rng, name, exact):
    for n, n_rows, n_threads in ((1, 100, 2), (3, 33, 1), (17, 1, 2), (64, 2000, 3)):
        t = random_tensor(rng, name, n_rows, 768)
        planned = matmul_scratch_bytes(n, t, exact=exact, n_threads=n_threads)
        assert planned == matmul_scratch_bytes(
            n, (name, (n_rows, 768)), exact=exact, n_threads=n_threads
        )
        pool = lowlevel.Pool(planned)
        x = random_x(rng, n, 768)
        y = matmul(x, t, pool=pool, exact=exact, n_threads=n_threads)
        assert pool.peak == planned and pool.used == 0
        np.testing.assert_array_equal(y, matmul(x, t, exact=exact, n_threads=1))
        out = np.full((n, n_rows), 3.0, np.float32)
        with pytest.raises(lowlevel.BudgetError):
            matmul(
                x, t, pool=lowlevel.Pool(planned - 256), out=out, exact=exact, n_threads=n_threads
            )
        assert (out == 3).all()


def test_scratch_of_experts(rng):
    """One plan for any distribution of rows over experts, and it is enough."""
    t = random_tensor(rng, "IQ4_NL", 11, 40, 64)
    for n in (1, 2, 3, 5, 9, 33, 60):
        planned = matmul_scratch_bytes(n, t, n_threads=2)
        x = random_x(rng, n, 64)
        for experts in (np.arange(n) % 11, np.arange(n) // 3 % 11, np.full(n, 7)):
            pool = lowlevel.Pool(planned, debug=True)
            y = matmul(x, t, pool=pool, experts=experts, n_threads=2)
            assert pool.peak == planned and pool.used == 0
            for i, e in enumerate(experts):
                np.testing.assert_array_equal(y[i], matmul(x[i : i + 1], t[int(e)])[0])
            pool.close()


def test_writes_stay_inside(rng):
    """Guard bytes behind the scratch and around out, for every tail of rows and columns."""
    t = random_tensor(rng, "Q2_K", 66, 512)
    for n in (1, 3, 5, 7, 13):
        for n_rows in (1, 15, 17, 31, 33, 66):
            pool = lowlevel.Pool("4MiB", debug=True)
            memory = np.full(n * n_rows + 64, 5.0, np.float32)
            out = memory[32:-32].reshape(n, n_rows)
            matmul(random_x(rng, n, 512), t[:n_rows], pool=pool, out=out, n_threads=2)
            assert (memory[:32] == 5).all() and (memory[-32:] == 5).all()
            pool.close()


def test_many_callers_at_once(rng):
    """Calls from several Python threads, one pool."""
    t = random_tensor(rng, "Q4_0", 300, 512)
    xs = [random_x(rng, n, 512) for n in (1, 9, 40, 3)]
    expected = [matmul(x, t, n_threads=1) for x in xs]
    each = max(matmul_scratch_bytes(len(x), t, n_threads=2) for x in xs)
    pool = lowlevel.Pool(8 * each)
    failures = []

    def caller(i):
        for _ in range(10):
            if not np.array_equal(matmul(xs[i], t, pool=pool, n_threads=2), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=caller, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and pool.used == 0


@pytest.mark.parametrize("name", ["Q4_0", "F16"])
@pytest.mark.parametrize("n_tasks_of_slice", [1, 5, 1000])
def test_stretches_of_tasks_are_done_once(rng, monkeypatch, name, n_tasks_of_slice):
    """However slices of work cut them, and with more threads than there are stretches."""
    from quant.cpu.matmul import run as runner
    from quant.cpu.matmul.layouts import ROWS

    t, x = random_tensor(rng, name, 70 * ROWS + 5, 64), random_x(rng, 1, 64)
    plan = matmul_plan(1, t, n_threads=1)
    assert plan.parts[0].stretch > 1
    expected = np.concatenate([matmul(x, t[i : i + ROWS]) for i in range(0, len(t), ROWS)], axis=1)
    monkeypatch.setattr(runner, "_tasks_of_slice", lambda n_tasks, cost: n_tasks_of_slice)
    for n_threads in (1, 2, 7):
        out = np.full_like(expected, np.nan)
        np.testing.assert_array_equal(matmul(x, t, out=out, n_threads=n_threads), expected)


def test_matrices_that_share_x(rng):
    """x is quantised once for several: the same bits as each alone, of a few rows of x and of many."""
    for n in (1, 70):
        some = [random_tensor(rng, "Q6_K", rows, 2048) for rows in (40, 8)]
        x = random_x(rng, n, 2048)
        alone = np.concatenate([matmul(x, t) for t in some], axis=1)
        np.testing.assert_array_equal(matmul(x, some), alone)


# ---------------------------------------------------------------- bad input


def bad_calls():
    t = QuantTensor(np.zeros((4, 68), np.uint8), "Q8_0", (4, 64))
    stack = QuantTensor(np.zeros((2, 4, 68), np.uint8), "Q8_0", (2, 4, 64))
    x = np.zeros((3, 64), np.float32)
    read_only = np.zeros((3, 4), np.float32)
    read_only.flags.writeable = False
    return {
        "x list": (TypeError, "x:", [[1.0]], t, {}),
        "x float64": (TypeError, "x:", x.astype(np.float64), t, {}),
        "x vector": (ValueError, "x:", x[0], t, {}),
        "x width": (ValueError, r"x:.*\(n, 64\)", x[:, :32], t, {}),
        "x strides": (ValueError, "x:.*contiguous", np.zeros((3, 128), "f")[:, ::2], t, {}),
        "t array": (TypeError, "t:", x, x, {}),
        "t stack": (ValueError, "t:.*experts", x, stack, {}),
        "t not a stack": (ValueError, "t:", x, t, {"experts": [0, 0, 0]}),
        "experts count": (ValueError, "experts:", x, stack, {"experts": [0, 0]}),
        "experts float": (TypeError, "experts:", x, stack, {"experts": [0.0, 1.0, 0.0]}),
        "experts high": (IndexError, "experts:.*2", x, stack, {"experts": [0, 2, 1]}),
        "experts low": (IndexError, "experts:.*-1", x, stack, {"experts": [0, -1, 1]}),
        "out shape": (ValueError, "out:", x, t, {"out": np.zeros((3, 5), "f")}),
        "out dtype": (TypeError, "out:", x, t, {"out": np.zeros((3, 4))}),
        "out strides": (ValueError, "out:", x, t, {"out": np.zeros((3, 8), "f")[:, ::2]}),
        "out read-only": (ValueError, "out:", x, t, {"out": read_only}),
        "out overlaps itself": (
            ValueError,
            "out:",
            x,
            t,
            {"out": np.lib.stride_tricks.as_strided(np.zeros(4, "f"), (3, 4), (0, 4))},
        ),
        "out is x": (ValueError, "out:.*x", x, t, {"out": x[:, :4]}),
        "exact": (TypeError, "exact:", x, t, {"exact": "yes"}),
        "pool": (TypeError, "pool:", x, t, {"pool": "256MiB"}),
        "n_threads 0": (ValueError, "n_threads:", x, t, {"n_threads": 0}),
        "n_threads bool": (TypeError, "n_threads:", x, t, {"n_threads": True}),
    }


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input(case):
    kind, message, x, t, options = bad_calls()[case]
    out = options.get("out")
    before = None if out is None else out.copy()
    with pytest.raises(kind, match=message):
        matmul(x, t, **options)
    if out is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    "n, t",
    [
        (-1, ("Q8_0", (4, 64))),
        (1.5, ("Q8_0", (4, 64))),
        (2**62, ("Q8_0", (4, 64))),
        (2**48, ("F32", (2**20, 1))),
        (10**30, ("Q2_K", (8, 4, 256))),
    ],
)
def test_bad_plan(n, t):
    with pytest.raises(TypeError if n == 1.5 else ValueError, match="n:"):
        matmul_scratch_bytes(n, t)


def test_bad_plan_shape():
    with pytest.raises(ValueError, match="columns"):
        matmul_scratch_bytes(1, ("Q2_K", (4, 64)))
    for shape in ((64,), (2**50, 64), (2**40, 2**20, 64), (-4, 64)):
        with pytest.raises(ValueError, match="t:"):
            matmul_scratch_bytes(1, ("Q8_0", shape))
    with pytest.raises(TypeError, match="t: expected a shape of ints"):
        matmul_scratch_bytes(1, ("Q8_0", (4.5, 64)))
    alike = ("Q8_0", (4, 64))
    for kind, text, t in (
        (ValueError, "t: all of one format.* Q4_0", [alike, ("Q4_0", (4, 64))]),
        (ValueError, "t: all of one format", [alike, ("Q8_0", (4, 32))]),
        (ValueError, "t: all of one format", [alike, ("Q8_0", (2, 4, 64))]),
        (TypeError, "t: expected a QuantTensor, .* got 5", 5),
        (TypeError, "t: expected a QuantTensor, .* got None", None),
        (TypeError, r"t: expected a QuantTensor, .* got \[\]", []),
        (TypeError, "t: expected a QuantTensor, .* got 'Q8_0'", "Q8_0"),
        (
            TypeError,
            r"t: expected a QuantTensor or \(qtype, shape\)",
            [alike, ("Q8_0", (4, 64), 1)],
        ),
    ):
        with pytest.raises(kind, match=text):
            matmul_plan(1, t)
    assert (
        matmul_scratch_bytes(2**40, ("Q8_0", (64, 64))) < 2**54
    )  # none has so much, but it is a number


@pytest.mark.parametrize("qtype", ["IQ4_NL", "F16"])
@pytest.mark.parametrize("n_used", [1, 3])
def test_rows_of_x_by_index_are_those_rows(qtype, n_used):
    """x_rows: the same bits as the rows, copied; with experts and without."""
    rng = np.random.default_rng(n_used)
    x = rng.standard_normal((7, 64), np.float32)
    t = quantize(rng.standard_normal((5, 24, 64), np.float32), qtype)
    x_rows = rng.integers(0, 7, 7 * n_used).astype(np.int32)
    experts = rng.integers(0, 5, len(x_rows))
    for each, options in ((t, dict(experts=experts)), (t[2], {})):
        got = matmul(x, each, x_rows=x_rows, **options)
        np.testing.assert_array_equal(got, matmul(x[x_rows], each, **options))
    one = matmul(x, t[1], x_rows=x_rows[:1])
    np.testing.assert_array_equal(one, matmul(x[x_rows[:1]], t[1]))
    for bad, kind in (([0], TypeError), (np.array([7]), IndexError), (np.array([-1]), IndexError)):
        with pytest.raises(kind, match="x_rows"):
            matmul(x, t[0], x_rows=bad)
    with pytest.raises(ValueError, match="x_rows"):
        matmul(x, t[0], x_rows=np.zeros((2, 2), int))


# ---------------------------------------------------------------- plans


def test_plans_name_their_path_and_their_scratch():
    """The same shape as attention's; sizes alone are looked at."""
    shape, stack = (64, 512), (4, 64, 512)
    for n, t, options, path, activations in (
        (1, ("Q4_K", shape), {}, "single", "int8"),
        (2, ("Q4_K", shape), {}, "panels", "int8"),
        (1, ("F16", shape), {}, "single", "float32"),
        (1, ("Q4_K", shape), dict(exact=True), "panels", "float32"),
        (9, ("Q4_K", stack), {}, "by expert", "int8"),
        (1, ("Q4_K", stack), {}, "single", "int8"),
        (9, [("Q8_0", shape), ("Q8_0", (128, 512))], dict(n_threads=2), "panels", "int8"),
        (0, ("Q4_K", shape), {}, "nothing", None),
        (3, ("F32", (64, 0)), {}, "nothing", None),
    ):
        plan = matmul_plan(n, t, **options)
        data = json.loads(json.dumps(plan.to_dict()))
        assert (data["path"], data.get("activations")) == (path, activations)
        assert data["scratch"] == [{"tag": tag, "bytes": size} for tag, size in plan.scratch]
        assert sum(size for _, size in plan.scratch) == plan.scratch_bytes == data["scratch_bytes"]
        assert plan.scratch_bytes == matmul_scratch_bytes(n, t, **options)
        assert plan.scratch_bytes % 256 == 0


def test_the_run_obeys_its_plan(monkeypatch, rng):
    """The kernels that run are those of the plan's path."""
    from quant.cpu.matmul import run as runner

    ran = []
    tables = ("MULTIPLY", "MULTIPLY_COLUMN", "MULTIPLY_EXACT")
    choose = runner._kernels

    def seen(part, path, of_call):
        kernels = choose(part, path, of_call)
        ran.append(next(n for n in tables if getattr(runner.matmul_kernels, n) is kernels))
        return kernels

    monkeypatch.setattr(runner, "_kernels", seen)
    t = QuantTensor(np.zeros((3, 16, 68), np.uint8), "Q8_0", (3, 16, 64))
    for n, experts, kernels in (
        (1, None, "MULTIPLY_COLUMN"),
        (2, None, "MULTIPLY"),
        (2, [0, 2], "MULTIPLY_COLUMN"),
        (2, [1, 1], "MULTIPLY"),
    ):
        matmul(
            rng.standard_normal((n, 64), np.float32),
            t[0] if experts is None else t,
            experts=experts,
        )
        assert ran.pop() == kernels and not ran
    matmul(rng.standard_normal((1, 64), np.float32), t[0], exact=True)
    assert ran == ["MULTIPLY_EXACT"]
