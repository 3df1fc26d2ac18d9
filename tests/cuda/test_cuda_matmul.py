"""quant.matmul on the CPU, the simulator and a GPU: one suite, against float64 and each other."""

import numpy as np
import pytest
from matmul_cases import (
    EXACT_ERROR,
    EXTREME_BYTES,
    check_product,
    extreme_tensor,
    random_tensor,
    random_x,
    weights_of,
)
from quant_cases import CHECKED, block_format, checked_in_every_way, orders_of

import lowlevel
import quant.gpu.matmul.run as launcher
from lowlevel import Pool, asarray, asnumpy, cudasim, devices
from quant import FORMATS, QuantTensor, matmul, matmul_plan, matmul_scratch_bytes
from quant.gpu.instances import (
    GATHER_ROWS,
    MATMUL_EXACT,
    MATMUL_TILES,
    MATMUL_WGMMA,
    MATVEC,
    MATVEC_EXACT,
    MATVEC_FEW,
    MATVEC_SINGLE,
    MOST_FEW_ROWS,
    PRODUCTS,
    QUANTISE_ROWS,
    SORT_ROWS,
    TILE_ROWS,
    TILES,
)
from quant.gpu.matmul.plan import SINGLE_COLUMNS

# The others are test_matmul_wgmma.py's.
KERNELS = tuple(set(PRODUCTS) - {*MATMUL_WGMMA.values(), TILE_ROWS, *SORT_ROWS.values()})
BLOCKS = [row.name for row in FORMATS.values() if not row.is_float]
FLOATS = [row.name for row in FORMATS.values() if row.is_float]
# (kernel, format, exact, rows of x that make the launcher choose it; of MATVEC's 1: each of an expert)
LAUNCHES = [
    *((kernel, name, False, 1) for name, kernel in MATVEC_SINGLE.items()),
    *((kernel, name, False, n) for (name, n), kernel in MATVEC.items()),
    *((kernel, name, True, n) for (name, n), kernel in MATVEC_EXACT.items()),
    *((kernel, name, True, n) for (name, n), kernel in MATVEC_FEW.items()),
    *((k, name, False, max(9, tile.columns - 3)) for (name, tile), k in MATMUL_TILES.items()),
    *((kernel, name, True, 35) for name, kernel in MATMUL_EXACT.items()),
]


@pytest.fixture(params=["cpu", "cudasim", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def any_device(request):
    if request.param == "cuda:0":
        try:
            devices.get(request.param)
        except (ImportError, ValueError) as reason:
            pytest.skip(str(reason))
    return request.param


def columns_of(name, n_blocks):
    """Columns of so many blocks; of plain floats an odd number of them."""
    block = block_format(name)
    return n_blocks * block.block_weights if not block.is_float else 37 * n_blocks


def multiply(x, t, device, **options):
    if not options.get("exact"):
        options.setdefault("activations", "int8")
    return asnumpy(matmul(asarray(x, device), t.to(device), **options))


def gapped(device, array, gap, offset):
    """A copy of a 2-D array on a device, rows `gap` items apart, the first one `offset` items off."""
    n_rows, n_columns = array.shape
    memory = np.zeros((n_rows + 1) * (n_columns + gap) + offset, array.dtype)
    view = memory[offset : offset + n_rows * (n_columns + gap)].reshape(n_rows, n_columns + gap)
    view[:, :n_columns] = array
    memory = asarray(memory, device)
    view = memory[offset : offset + n_rows * (n_columns + gap)].reshape(n_rows, n_columns + gap)
    return view[:, :n_columns]


# ---------------------------------------------------------------- every kernel


def check_launch(kernel, t, device, exact, n, rng):
    x, options = random_x(rng, n, t.columns), {"activations": None if exact else "int8"}
    stack = t
    if kernel is MATVEC.get((t.format.name, 1)):
        stack, options = t.reshape(1, *t.shape), {"experts": [0], **options}
    check_product(multiply(x, stack, device, exact=exact, **options), x, t, exact, kernel.name)


@pytest.mark.parametrize(
    "kernel, name, exact, n", LAUNCHES, ids=lambda value: getattr(value, "name", str(value))
)
def test_every_instance(kernel, name, exact, n, device, launched, rng):
    """Two tiles of rows and a bit of the next; a depth of 256 weights and a bit of the next."""
    n_blocks = {1: 8, 32: 11, 64: 5, 128: 3, 256: 3}[block_format(name).block_weights]
    # A few rows of floats have a kernel of their own.
    is_long = block_format(name).is_float and kernel in MATVEC_EXACT.values()
    n_rows = MOST_FEW_ROWS + 3 if is_long else 67
    t = random_tensor(rng, name, n_rows, columns_of(name, n_blocks))
    check_launch(kernel, t, device, exact, n, rng)
    prepares = {*QUANTISE_ROWS.values(), *GATHER_ROWS.values()}
    assert kernel in launched and len(set(launched) - prepares) == 1


@pytest.mark.parametrize("name, order", orders_of([*BLOCKS, *FLOATS]), indirect=["order"])
def test_orders(name, order, rng):
    """As threads and blocks come in any order: a few rows and tiles, experts among them."""
    t = random_tensor(rng, name, 3, 37, columns_of(name, 3))
    for exact in {name in FLOATS, True}:
        for n in (3, 9):
            x = random_x(rng, n, t.columns)
            experts = rng.integers(0, 3, n)
            y = multiply(x, t, "cudasim", exact=exact, experts=experts)
            for e in range(3):
                check_product(y[experts == e], x[experts == e], t[e], exact, f"{n} {order}")


@pytest.mark.parametrize("name", checked_in_every_way([*BLOCKS, "F16"]))
def test_checked(name):
    """Every kernel; the three float formats are one file.

    Always the same numbers: one word in 200 000 with two sums of x is, by chance, the simulator's mark
    for unwritten memory.
    """
    rng = np.random.default_rng(1)
    names = FLOATS if name == "F16" else [name]
    with cudasim.settings(**CHECKED):
        for each in names:
            launches = [row for row in LAUNCHES if row[1] == each]
            t = random_tensor(rng, each, 33, columns_of(each, 2))
            for kernel, _, exact, n in launches:
                check_launch(kernel, t, "cudasim", exact, n, rng)


# ---------------------------------------------------------------- on every device


@pytest.mark.parametrize("name", [*BLOCKS, *FLOATS])
@pytest.mark.parametrize("n, n_rows, n_blocks", [(1, 1, 1), (2, 37, 3), (7, 3, 9)])
def test_products(name, n, n_rows, n_blocks, any_device, rng):
    t = random_tensor(rng, name, n_rows, columns_of(name, n_blocks))
    x = random_x(rng, n, t.columns)
    for exact in {name in FLOATS, True}:
        check_product(multiply(x, t, any_device, exact=exact), x, t, exact)


@pytest.mark.parametrize("name", [*BLOCKS, "F16"])
def test_as_on_the_cpu(name, device, rng):
    """Where sums are integers of one scale, often the same bits; else float32's error apart."""
    t = random_tensor(rng, name, 35, columns_of(name, 8))
    norms = np.linalg.norm(weights_of(t), axis=1)
    for n in (1, 4, 20):
        x = random_x(rng, n, t.columns)
        apart = np.abs(multiply(x, t, device) - matmul(x, t, n_threads=1))
        assert np.max(apart / (np.linalg.norm(x, axis=1)[:, None] * norms)) <= EXACT_ERROR / 4


@pytest.mark.parametrize("name", ["IQ4_NL", "Q2_K", "Q3_K", "Q6_K", "NVFP4", "Q1_0", "F16", "F32"])
@pytest.mark.parametrize("gap, offset", [(0, 1), (1, 0), (2, 2), (6, 4), (8, 8), (16, 0)])
def test_rows_anywhere(name, gap, offset, device, rng):
    """Weights at any address, with gaps between rows: pieces of 16 bytes, single bytes at the edges."""
    t = random_tensor(rng, name, 71, columns_of(name, 3))
    on = QuantTensor(gapped(device, t.data, gap, offset), name, t.shape)
    for n, exact in ((2, name == "F16"), (9, False), (9, True)):
        x = random_x(rng, n, t.columns)
        activations = "float32" if exact else "int8"
        found = asnumpy(matmul(asarray(x, device), on, activations=activations))
        check_product(found, x, t, exact, f"{n} {exact}")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n", [3, 11])
def test_strides(exact, n, any_device, rng):
    """x and out with gaps, reversed and repeated rows; rows of t reversed, with gaps, repeated."""
    t = random_tensor(rng, "Q6_K", 70, 512)
    wide = random_x(rng, 2 * n, 601)
    x, on = wide[::-2, 39:551], t.to(any_device)
    x_on = asarray(wide, any_device)[::-2, 39:551]
    expected = multiply(np.ascontiguousarray(x), t, any_device, exact=exact)
    out = asarray(np.full((2 * n, 91), 7, np.float32), any_device)
    activations = "float32" if exact else "int8"
    y = matmul(x_on, on, out=out[::-2, 10:80], activations=activations)
    assert np.array_equal(asnumpy(y), expected)
    out = asnumpy(out)
    assert np.array_equal(out[::-2, 10:80], expected)
    assert (out[::2] == 7).all() and (out[:, :10] == 7).all() and (out[:, 80:] == 7).all()
    for rows in (slice(3, 60, 4), slice(None, None, -1), slice(69, 70)):
        some = matmul(x_on, on[rows], activations=activations)
        assert np.array_equal(asnumpy(some), expected[:, rows])


@pytest.mark.parametrize("exact", [False, True])
def test_company_changes_no_bits(exact, device, rng):
    """As long as the same kind of kernel serves: up to eight rows of x (as floats four), or more."""
    t = random_tensor(rng, "Q2_K", 45, 768).to(device)
    x = random_x(rng, 150, 768)
    on = asarray(x, device)
    few = 4 if exact else 8
    options = {"activations": "float32" if exact else "int8"}
    for together, others in (
        (few, ((0, 1), (1, 2), (few - 3, 3), (0, few // 2 + 1))),
        (150, ((0, few + 1), (7, 30), (140, 10))),
    ):
        expected = asnumpy(matmul(on[:together], t, **options))
        for first, n in others:
            some = asnumpy(matmul(on[first : first + n], t, **options))
            assert np.array_equal(some, expected[first : first + n])


@pytest.mark.parametrize("name", ["IQ4_NL", "Q4_K", "BF16"])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_experts(name, n, any_device, rng):
    """Rows in any order, experts without rows, strided stacks, indices as lists and as arrays."""
    stack = random_tensor(rng, name, 11, 35, columns_of(name, 2))
    t, on = stack[1::2], stack.to(any_device)[1::2]
    x = random_x(rng, n, t.columns)
    experts = rng.choice([0, 2, 4], n)
    for exact in {name in FLOATS, True}:
        options = {"activations": "float32" if exact else "int8"}
        y = asnumpy(matmul(asarray(x, any_device), on, experts=experts.tolist(), **options))
        for e in range(5):
            check_product(y[experts == e], x[experts == e], t[e], exact)
        again = matmul(asarray(x, any_device), on, experts=asarray(experts, any_device), **options)
        assert np.array_equal(asnumpy(again), y)


def test_long_rows(device, launched, rng):
    """A row of x too long for shared memory is made bytes by a kernel of its own; the bits are the same."""
    t = random_tensor(rng, "IQ4_NL", 2, SINGLE_COLUMNS + 32)
    x = random_x(rng, 1, t.columns)
    check_product(multiply(x, t, device), x, t, False)
    assert launched[-1] is MATVEC["IQ4_NL", 1]


def test_experts_take_one_launch(device, launched, rng):
    t = random_tensor(rng, "Q2_K", 6, 9, 256)
    for n in (6, 60):
        multiply(random_x(rng, n, 256), t, device, experts=np.arange(n) % 6)
    assert len(launched) == 4


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["IQ4_NL", "Q3_K", "F16"])
def test_rows_that_are_not_sorted(name, exact, device, launched, rng):
    """A few rows with an expert each: ids on the device are taken as they come; NaN where there is no such expert."""
    t = random_tensor(rng, name, 7, 9, 512)
    on = t.to(device)
    for ids in ([3], [6, 0, 2, 2, 5], [1, 7, 0, -1, 2**31 - 1, 6, -(2**31)]):
        ids = np.array(ids, np.int32)
        x = random_x(rng, len(ids), t.columns)
        there = asarray(x, device)
        y = asnumpy(matmul(there, on, experts=asarray(ids, device), exact=exact))
        n_launched = len(launched)
        assert SORT_ROWS["int32"] not in launched
        is_there = (0 <= ids) & (ids < 7)
        assert np.isnan(y[~is_there]).all()
        for e in set(ids[is_there].tolist()):
            check_product(y[ids == e], x[ids == e], t[e], exact)
        wide = asarray(ids.astype(np.int64), device)
        again = asnumpy(matmul(there, on, experts=wide, exact=exact))
        assert launched[n_launched] is SORT_ROWS["int64"]
        np.testing.assert_array_equal(again, y)
        launched.clear()


@pytest.mark.parametrize(
    ("name", "columns"),
    [("IQ4_NL", 128), ("IQ4_NL", 64), ("Q8_0", 1024), ("Q3_K", 512), ("Q2_K", 256)],
)
def test_short_rows_that_go_together(name, columns, device, rng):
    """A warp takes as many as it has lanes for, where they lie side by side; the same bits as where they do not."""
    n_rows = 96 if columns < 1024 else 6
    t = random_tensor(rng, name, 5, n_rows, columns)
    assert matmul_plan(5, t, device=device).to_dict()["row_lanes"] < 32
    assert matmul_plan(5, t[:, 1:-2], device=device).row_lanes == 32  # some would be left over
    ids = np.array([4, 0, 3, 7, 1], np.int32)
    x, experts = random_x(rng, len(ids), columns), asarray(ids, device)
    wide = np.zeros((*t.data.shape[:2], t.data.shape[2] + 16), np.uint8)
    wide[..., : t.data.shape[2]] = t.data
    apart = QuantTensor(asarray(wide, device)[..., : t.data.shape[2]], name, t.shape)
    found, expected = (
        asnumpy(matmul(asarray(x, device), on, experts=experts)) for on in (t.to(device), apart)
    )
    np.testing.assert_array_equal(found, expected)
    for row, e in enumerate(ids):
        if e < 5:
            check_product(found[row : row + 1], x[row : row + 1], t[e], False)
    odd = matmul(asarray(x, device), t.to(device)[:, 1:-2], experts=experts)
    np.testing.assert_array_equal(asnumpy(odd), expected[:, 1:-2])
    one = asarray(x[:1], device)
    alone = asnumpy(matmul(one, t.to(device)[4]))
    np.testing.assert_array_equal(alone[0], expected[0])


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize(
    ("name", "activations"), [("IQ4_NL", "int8"), ("Q4_K", "float32"), ("Q2_K", "bfloat16")]
)
def test_rows_of_x_by_number(name, activations, n, device, rng):
    """As of a copy that has the rows; NaN where x has none."""
    t = random_tensor(rng, name, 7, 9, 512)
    on, x = t.to(device), random_x(rng, 6, t.columns)
    x_rows = rng.integers(0, len(x), n).astype(np.int32)
    x_rows[2], x_rows[4] = -1, len(x)
    experts = asarray(rng.integers(0, 7, n).astype(np.int32), device)
    found = matmul(
        asarray(x, device),
        on,
        experts=experts,
        x_rows=asarray(x_rows, device),
        activations=activations,
    )
    is_there = (0 <= x_rows) & (x_rows < len(x))
    copied = np.where(is_there[:, None], x[np.where(is_there, x_rows, 0)], np.float32(0))
    expected = matmul(asarray(copied, device), on, experts=experts, activations=activations)
    found, expected = asnumpy(found), asnumpy(expected)
    assert np.isnan(found[~is_there]).all()
    np.testing.assert_array_equal(found[is_there], expected[is_there])


def test_rows_of_x_that_do_not_fit(device, rng):
    t = random_tensor(rng, "Q8_0", 3, 9, 64).to(device)
    x, ids = asarray(random_x(rng, 2, 64), device), asarray(np.zeros(4, np.int32), device)
    with pytest.raises(ValueError, match=r"x_rows: on .* with experts= only"):
        matmul(x, t[0], x_rows=ids)
    with pytest.raises(TypeError, match="x_rows: "):
        matmul(x, t, experts=ids, x_rows=np.zeros(4, np.int32))
    with pytest.raises(TypeError, match="x_rows: expected int32"):
        matmul(x, t, experts=ids, x_rows=asarray(np.zeros(4, np.int64), device))
    gaps = asarray(np.zeros(8, np.int32), device)[::2]
    with pytest.raises(ValueError, match="x_rows: expected an array without gaps"):
        matmul(x, t, experts=ids, x_rows=gaps)


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_to_do(exact, any_device, rng):
    t = random_tensor(rng, "Q8_0", 5, 64)
    assert multiply(random_x(rng, 0, 64), t, any_device, exact=exact).shape == (0, 5)
    assert multiply(random_x(rng, 3, 64), t[:0], any_device, exact=exact).shape == (3, 0)
    empty = QuantTensor(np.empty((5, 0), np.uint8), "Q8_0", (5, 0))
    y = multiply(random_x(rng, 3, 0), empty, any_device, exact=exact)
    assert np.array_equal(y, np.zeros((3, 5), np.float32))
    stack = random_tensor(rng, "Q8_0", 2, 5, 64)
    none = multiply(random_x(rng, 0, 64), stack, any_device, experts=[], exact=exact)
    assert none.shape == (0, 5)


@pytest.mark.parametrize("name", ["IQ4_NL", "Q4_K"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [2, 9])
def test_not_finite(name, special, n, any_device, rng):
    t = random_tensor(rng, name, 40, 768)
    x = random_x(rng, n, 768)
    clean = multiply(x, t, any_device)
    x[1, int(rng.integers(768))] = special
    y = multiply(x, t, any_device)
    assert np.isnan(y[1]).all()
    others = np.arange(n) != 1
    assert np.array_equal(y[others], clean[others])
    exact = multiply(x, t, any_device, exact=True)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64) @ weights_of(t).T
    assert np.array_equal(np.isnan(exact), np.isnan(expected))
    infinite = np.isinf(expected)
    assert np.array_equal(exact[infinite], expected[infinite])


@pytest.mark.parametrize("n", [1, 5, 9])
def test_ranges_of_x(n, any_device, rng):
    """Tiny, huge and zero blocks of x, and blocks of very different size beside each other."""
    t = random_tensor(rng, "Q8_0", 20, 256)
    base = random_x(rng, n, 256)
    uneven = base * np.repeat(10.0 ** rng.integers(-20, 20, 8), 32).astype(np.float32)
    for x in (*(base * np.float32(scale) for scale in (1e-25, 1e-10, 1e10, 1e30)), uneven):
        check_product(multiply(x, t, any_device), x, t, False)
    for scale in (0, 1e-38):
        assert not multiply(base * np.float32(scale), t, any_device).any()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n", [1, 5, 9])
def test_extreme_bytes(name, n, any_device):
    """The largest integers on both sides, where a byte or a sum might overflow."""
    for byte in EXTREME_BYTES:
        t = extreme_tensor(name, byte, 5, 2)
        for sign in (1, -1):
            x = np.full((n, t.columns), sign * 127.0, np.float32)
            check_product(multiply(x, t, any_device), x, t, False, f"{byte:x}")


def test_more_rows_than_a_launch_counts(device, launched, monkeypatch, rng):
    monkeypatch.setattr(launcher, "MAX_ROWS", 16)
    t, x = random_tensor(rng, "Q4_0", 37, 96), random_x(rng, 6, 96)
    check_product(multiply(x, t, device), x, t, False)
    assert len(launched) == 4


def test_less_shared_memory(device, launched, monkeypatch, rng):
    """Smaller tiles where a block may have less than 100 KiB."""
    monkeypatch.setattr(devices.get(device), "max_shared_bytes", 99 << 10)
    t, x = random_tensor(rng, "Q8_0", 40, 288), random_x(rng, 70, 288)
    check_product(multiply(x, t, device), x, t, False)
    assert launched[-1] is MATMUL_TILES["Q8_0", TILES[1]]


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 5, 9])
def test_beyond_32_bits(n, rng):
    """More than 2**31 bytes of weights, and for tiles more than 65535 blocks: the last rows are right."""
    try:
        device = devices.get("cuda:0")
    except (ImportError, ValueError) as reason:
        pytest.skip(str(reason))
    few = random_tensor(rng, "Q8_0", 64, 1024)
    n_rows = 2**21 + 64
    data = device.empty((n_rows, few.row_bytes), np.dtype(np.uint8))
    data[...] = 1
    data[-64:] = asarray(few.data, device.name)
    x = random_x(rng, n, 1024)
    for activations in ("int8", "bfloat16"):
        y = matmul(
            asarray(x, device.name),
            QuantTensor(data, "Q8_0", (n_rows, 1024)),
            activations=activations,
        )
        check_product(asnumpy(y[:, -64:]), x, few, activations)


# ---------------------------------------------------------------- scratch


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["Q2_K", "IQ4_NL", "F16"])
def test_scratch_is_the_plan(name, exact, device, rng):
    for n, n_rows in ((1, 10), (3, 33), (17, 1)):
        columns = 777 if name == "F16" else 768
        t, x = random_tensor(rng, name, n_rows, columns), random_x(rng, n, columns)
        planned = matmul_scratch_bytes(n, t.to(device), exact=exact)
        outline = matmul_scratch_bytes(n, (name, (n_rows, columns)), exact=exact, device=device)
        assert planned == outline
        x, on = asarray(x, device), t.to(device)
        with Pool(planned, device=device, debug=True) as pool:
            y = asnumpy(matmul(x, on, pool=pool, exact=exact))
            assert pool.peak == planned and pool.used == 0
        assert np.array_equal(y, asnumpy(matmul(x, on, exact=exact)))
        if not planned:  # one row of x, which the kernel takes as it is
            assert n == 1 and not exact and name != "F16"
            continue
        out = asarray(np.full((n, n_rows), 3, np.float32), device)
        with Pool(planned - 256, device=device) as pool:
            with pytest.raises(lowlevel.BudgetError):
                matmul(x, on, pool=pool, out=out, exact=exact)
        assert (asnumpy(out) == 3).all()


def test_scratch_of_experts(device, rng):
    """One plan for any distribution of rows over experts, and it is enough."""
    t = random_tensor(rng, "IQ4_NL", 11, 9, 64)
    for n in (1, 5, 33):
        planned = matmul_scratch_bytes(n, t.to(device))
        x = random_x(rng, n, 64)
        for experts in (np.arange(n) % 11, np.arange(n) // 3 % 11, np.full(n, 7)):
            with Pool(planned, device=device, debug=True) as pool:
                y = multiply(x, t, device, experts=experts, pool=pool)
                assert pool.peak == planned and pool.used == 0
            for e in set(experts):
                check_product(y[experts == e], x[experts == e], t[e], False)


# ---------------------------------------------------------------- bad input


def bad_calls(device):
    def on(array):
        return asarray(array, device)

    t = QuantTensor(np.zeros((4, 68), np.uint8), "Q8_0", (4, 64)).to(device)
    stack = QuantTensor(np.zeros((2, 4, 68), np.uint8), "Q8_0", (2, 4, 64)).to(device)
    x = on(np.zeros((3, 64), np.float32))
    bytes_of_x = on(np.zeros(3 * 256 + 2, np.uint8))
    return {
        "x list": (TypeError, "x:", [[1.0]], t, {}),
        "x float64": (TypeError, "x:.*float64", on(np.zeros((3, 64))), t, {}),
        "x vector": (ValueError, "x:", x[0], t, {}),
        "x width": (ValueError, r"x:.*\(n, 64\)", x[:, :32], t, {}),
        "x strides": (ValueError, "x:.*contiguous", on(np.zeros((3, 128), "f"))[:, ::2], t, {}),
        "x elsewhere": (TypeError, "x:.*cpu.*lowlevel.asarray", asnumpy(x), t, {}),
        "t elsewhere": (TypeError, "x:.*t on cpu", x, t.to("cpu"), {}),
        "x odd": (
            ValueError,
            "x:.*aligned",
            bytes_of_x[2:].view(np.float32).reshape(3, 64),
            t,
            {},
        ),
        "t stack": (ValueError, "t:.*experts", x, stack, {}),
        "t not a stack": (ValueError, "t:", x, t, {"experts": [0, 0, 0]}),
        "experts count": (ValueError, "experts:", x, stack, {"experts": [0, 0]}),
        "experts float": (TypeError, "experts:", x, stack, {"experts": [0.0, 1.0, 0.0]}),
        "experts high": (IndexError, "experts:.*2", x, stack, {"experts": [0, 2, 1]}),
        "out shape": (ValueError, "out:", x, t, {"out": on(np.zeros((3, 5), "f"))}),
        "out dtype": (TypeError, "out:", x, t, {"out": on(np.zeros((3, 4)))}),
        "out elsewhere": (TypeError, "out:.*cpu", x, t, {"out": np.zeros((3, 4), "f")}),
        "out is x": (ValueError, "out:.*x", x, t, {"out": x[:, :4]}),
        "exact": (TypeError, "exact:", x, t, {"exact": "yes"}),
        "pool": (TypeError, "pool:", x, t, {"pool": Pool("1KiB")}),
        "n_threads": (ValueError, "n_threads:", x, t, {"n_threads": 1}),
    }


@pytest.mark.parametrize("case", bad_calls("cudasim"))
def test_bad_input(case, device, launched):
    kind, message, x, t, options = bad_calls(device)[case]
    with pytest.raises(kind, match=message):
        matmul(x, t, **options)
    assert not launched
