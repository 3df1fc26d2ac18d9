"""Products of many rows of x on Hopper's warpgroup products: against float64 of what bfloat16 leaves."""

import numpy as np
import pytest
from matmul_cases import check_product, random_tensor, random_x, weights_of
from quant_cases import CHECKED, block_format, checked_in_every_way

import quant.gpu.matmul.run as launcher
from lowlevel import Pool, asarray, asnumpy, cudasim, devices
from lowlevel.shapes import resolve_dtype
from quant import FORMATS, QuantTensor, matmul, matmul_plan, matmul_scratch_bytes
from quant.gpu.instances import MATMUL_WGMMA, SORT_ROWS, TILE_ROWS, WGMMA_TILES
from quant.gpu.matmul import plan as planner

BLOCKS = [row.name for row in FORMATS.values() if not row.is_float]
KERNELS = (*MATMUL_WGMMA.values(), TILE_ROWS, *SORT_ROWS.values())
pytestmark = pytest.mark.filterwarnings("ignore:overflow")


@pytest.fixture(autouse=True)
def needs_wgmma(request):
    if "device" in request.fixturenames:
        name = request.getfixturevalue("device")
        if devices.get(name).architecture != "90a":
            pytest.skip("its instructions are of another architecture")


@pytest.fixture
def tile_of(monkeypatch):
    """Makes plans take a tile."""

    def choose(tile):
        monkeypatch.setattr(planner, "_wgmma_tile", lambda *sizes: tile)
        planner._plan.cache_clear()

    yield choose
    planner._plan.cache_clear()


def columns_of(name, n_steps):
    """Columns of so many steps of 64; of 32 weights a block half a step more."""
    n_weights = block_format(name).block_weights
    return (
        64 * n_steps + 32
        if n_weights == 32
        else max(n_weights, 64 * n_steps // n_weights * n_weights)
    )


def multiply(x, t, device, **options):
    options.setdefault("activations", "bfloat16")
    return asnumpy(matmul(asarray(x, device), t.to(device), **options))


# ---------------------------------------------------------------- every kernel


@pytest.mark.parametrize("tile", WGMMA_TILES, ids=lambda tile: str(tile.columns))
@pytest.mark.parametrize("name", BLOCKS)
def test_every_instance(name, tile, device, tile_of, launched, monkeypatch, rng):
    """More tiles than blocks, the last ones not whole; more steps than places, and a bit of a chunk."""
    tile_of(tile)
    monkeypatch.setattr(devices.get(device), "n_multiprocessors", 2)
    t = random_tensor(rng, name, 300, columns_of(name, 9))
    x = random_x(rng, tile.columns + 5, t.columns)
    check_product(multiply(x, t, device), x, t, "bfloat16", name)
    assert launched == [TILE_ROWS, MATMUL_WGMMA[name, tile]]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_every_sort(dtype, device, tile_of, launched, monkeypatch, rng):
    """Two matrices of experts in one launch; expert numbers that the host never reads."""
    monkeypatch.setattr(devices.get(device), "n_multiprocessors", 3)
    tile_of(WGMMA_TILES[0])
    gate, up = (random_tensor(rng, "Q4_K", 6, 140, 256) for _ in range(2))
    n = 170
    x, experts = random_x(rng, n, 256), np.where(rng.random(n) < 0.5, 4, rng.integers(0, 6, n))
    on = asarray(experts.astype(dtype), device)
    y = asnumpy(
        matmul(
            asarray(x, device), (gate.to(device), up.to(device)), experts=on, activations="bfloat16"
        )
    )
    for e in range(6):
        check_product(y[experts == e][:, :140], x[experts == e], gate[e], "bfloat16")
        check_product(y[experts == e][:, 140:], x[experts == e], up[e], "bfloat16")
    assert launched == [SORT_ROWS[dtype], TILE_ROWS, MATMUL_WGMMA["Q4_K", WGMMA_TILES[0]]]


@pytest.mark.parametrize("name", ["Q6_K", "IQ4_NL"])
def test_orders(name, order, tile_of, monkeypatch, rng):
    """As threads and blocks come in any order."""
    tile_of(WGMMA_TILES[1])
    monkeypatch.setattr(devices.get("cudasim"), "n_multiprocessors", 2)
    t = random_tensor(rng, name, 3, 140, columns_of(name, 5))
    x, experts = random_x(rng, 40, t.columns), rng.integers(0, 3, 40)
    y = multiply(x, t, "cudasim", experts=asarray(experts, "cudasim"))
    for e in range(3):
        check_product(y[experts == e], x[experts == e], t[e], "bfloat16")


@pytest.mark.parametrize("name", checked_in_every_way(BLOCKS))
def test_checked(name, tile_of, monkeypatch):
    tile_of(WGMMA_TILES[BLOCKS.index(name) % 3])
    rng = np.random.default_rng(1)
    monkeypatch.setattr(devices.get("cudasim"), "n_multiprocessors", 1)
    t = random_tensor(rng, name, 2, 130, columns_of(name, 5))
    x, experts = random_x(rng, 12, t.columns), rng.integers(0, 2, 12)
    with cudasim.settings(**CHECKED):
        y = multiply(x, t, "cudasim", experts=asarray(experts, "cudasim"))
    for e in range(2):
        check_product(y[experts == e], x[experts == e], t[e], "bfloat16")


# ---------------------------------------------------------------- operands anywhere, of any type


@pytest.mark.parametrize("name", ["IQ4_NL", "Q2_K", "Q4_K"])
@pytest.mark.parametrize("gap, offset", [(0, 1), (1, 0), (2, 2), (12, 4), (16, 8), (0, 0)])
def test_rows_anywhere(name, gap, offset, device, rng):
    """Weights at any address, with gaps between rows: pieces of 16 bytes, single bytes at the edges."""
    t = random_tensor(rng, name, 260, columns_of(name, 4))
    memory = np.zeros((261, t.row_bytes + gap), np.uint8).reshape(-1)
    view = memory[offset:][: 260 * (t.row_bytes + gap)].reshape(260, -1)
    view[:, : t.row_bytes] = t.data
    memory = asarray(memory, device)
    on = memory[offset:][: 260 * (t.row_bytes + gap)].reshape(260, -1)[:, : t.row_bytes]
    x = random_x(rng, 9, t.columns)
    found = asnumpy(matmul(asarray(x, device), QuantTensor(on, name, t.shape)))
    check_product(found, x, t, "bfloat16")
    backwards = QuantTensor(on[::-1], name, t.shape)
    assert np.array_equal(asnumpy(matmul(asarray(x, device), backwards)), found[:, ::-1])


@pytest.mark.parametrize("activations", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_16_bit_operands(n, dtype, activations, device, rng):
    """x and out of 16 bits give what float32 would, rounded once."""
    kind = resolve_dtype(dtype)
    t = random_tensor(rng, "Q4_K", 40, 512).to(device)
    x = random_x(rng, n, 520).astype(kind)
    wide = asarray(np.zeros((n, 45), kind), device)
    on = asarray(x, device)[:, 3:515]  # not at multiples of 16 bytes
    out = matmul(on, t, out=wide[:, 2:42], activations=activations)
    expected = matmul(asarray(x[:, 3:515].astype(np.float32), device), t, activations=activations)
    assert np.array_equal(
        asnumpy(out).astype(np.float32), asnumpy(expected).astype(kind).astype(np.float32)
    )
    assert not asnumpy(wide).astype(np.float32)[:, [0, 1, 42, 43, 44]].any()


def test_company_changes_no_bits(device, tile_of, rng):
    """Whatever rows stand beside a row of x, in whatever tile, as an expert's row too."""
    t = random_tensor(rng, "Q3_K", 2, 45, 768).to(device)
    x = asarray(random_x(rng, 150, 768), device)
    expected = asnumpy(matmul(x, t[1]))
    for tile in WGMMA_TILES:
        tile_of(tile)
        for first, n in ((0, 9), (7, 30), (140, 10)):
            some = matmul(x[first : first + n], t[1], activations="bfloat16")
            assert np.array_equal(asnumpy(some), expected[first : first + n])
        together = asnumpy(matmul(x, t, experts=np.arange(150) % 2))
        assert np.array_equal(together[1::2], expected[1::2])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_not_finite(special, device, rng):
    """It goes through the products, and stays in its row."""
    t, x = random_tensor(rng, "Q4_K", 40, 768), random_x(rng, 20, 768)
    clean = multiply(x, t, device)
    x[1, 5] = special
    y = multiply(x, t, device)
    others = np.arange(20) != 1
    assert not np.isfinite(y[1]).any() and np.array_equal(y[others], clean[others])


def test_error(device, rng):
    """What the docstring says, against float64 without any rounding."""
    t, x = random_tensor(rng, "Q8_0", 200, 1024), random_x(rng, 64, 1024)
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weights_of(t), axis=1)
    apart = (multiply(x, t, device) - x.astype(np.float64) @ weights_of(t).T) / norms
    assert np.sqrt(np.mean(apart**2)) <= 0.0025 / np.sqrt(1024)


# ---------------------------------------------------------------- experts on the device


@pytest.mark.parametrize("n", [4, 40, 200])
def test_experts_that_do_not_exist(n, device, rng):
    """Their rows become NaN; of a list they are an IndexError."""
    t, x = random_tensor(rng, "IQ4_NL", 4, 9, 64), random_x(rng, n, 64)
    experts = rng.integers(0, 4, n)
    good = multiply(x, t, device, experts=experts, activations=None)
    bad = experts.copy()
    bad[1], bad[3] = -1, 4
    y = multiply(x, t, device, experts=asarray(bad, device), activations=None)
    assert np.isnan(y[[1, 3]]).all()
    others = ~np.isin(np.arange(n), (1, 3))
    assert np.array_equal(y[others], good[others])


@pytest.mark.parametrize("n", [1, 5, 33, 300])
def test_scratch_of_experts_on_the_device(n, device, rng):
    t, x = random_tensor(rng, "Q8_0", 7, 9, 64), random_x(rng, n, 64)
    for activations in (None, "int8", "bfloat16", "float32"):
        planned = matmul_scratch_bytes(n, t.to(device), activations=activations)
        for experts in (np.arange(n) % 7, np.full(n, 6)):
            with Pool(planned, device=device, debug=True) as pool:
                y = multiply(
                    x,
                    t,
                    device,
                    pool=pool,
                    activations=activations,
                    experts=asarray(experts, device),
                )
                assert pool.peak == planned and pool.used == 0
            host = multiply(x, t, device, activations=activations, experts=experts)
            assert np.array_equal(y, host)


def test_the_host_does_not_read_experts(device, monkeypatch, rng):
    t, x = random_tensor(rng, "Q8_0", 7, 9, 64).to(device), asarray(random_x(rng, 40, 64), device)
    experts, there = asarray(rng.integers(0, 7, 40), device), devices.get(device)

    def never(*arguments):
        raise AssertionError("the host reads")

    for name in ("to_host", "synchronise"):
        monkeypatch.setattr(there, name, never)
    matmul(x, t, experts=experts)
    monkeypatch.undo()


# ---------------------------------------------------------------- plans


def test_plans_name_their_path(device):
    def path(n, name, shape, **options):
        plan = matmul_plan(n, (name, shape), device=device, **options).to_dict()
        return plan["path"], plan["activations"]

    shape = (16384, 4096)
    assert path(1, "Q4_K", shape) == ("single", "int8")
    assert path(8, "Q4_K", shape) == ("stream", "int8")
    assert path(9, "Q4_K", shape) == ("wgmma", "bfloat16")
    assert path(512, "Q4_K", shape, activations="int8") == ("tiles", "int8")
    assert path(512, "Q4_K", shape, exact=True) == ("tiles", "float32")
    assert path(512, "F16", shape) == ("tiles", "float32")
    assert path(64, "Q4_K", (64, *shape)) == ("stream", "int8")
    plan = matmul_plan(512, ("Q4_K", shape), device=device)
    assert sum(n_bytes for _, n_bytes in plan.scratch) == plan.scratch_bytes
    assert plan.to_dict()["rows_of_x"] == plan.tile.columns == 256


def test_other_architectures(device, monkeypatch, launched, rng):
    """They have int8; bfloat16 is refused."""
    monkeypatch.setattr(devices.get(device), "architecture", "80")
    t, x = random_tensor(rng, "Q8_0", 9, 64), random_x(rng, 20, 64)
    assert np.array_equal(
        multiply(x, t, device, activations=None), multiply(x, t, device, activations="int8")
    )
    with pytest.raises(ValueError, match=r"activations:.*9\.0.*int8"):
        multiply(x, t, device)


def test_more_rows_than_a_launch_counts(device, launched, monkeypatch, rng):
    monkeypatch.setattr(launcher, "MAX_ROWS", 128)
    t, x = random_tensor(rng, "Q4_0", 300, 96), random_x(rng, 10, 96)
    check_product(multiply(x, t, device), x, t, "bfloat16")
    assert len(launched) == 4


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_several_matrices(activations, rng):
    """Side by side, with other numbers of rows, on the CPU and on a device."""
    t, x = random_tensor(rng, "Q2_K", 90, 256), random_x(rng, 11, 256)
    parts = (t[:20], t[20:21], t[21:])
    for device in ("cpu", "cudasim"):
        whole = multiply(x, t, device, activations=activations)
        some = matmul(asarray(x, device), [p.to(device) for p in parts], activations=activations)
        assert np.array_equal(asnumpy(some), whole)


def test_bad_input(device, rng):
    t = random_tensor(rng, "Q8_0", 2, 9, 64).to(device)
    x = asarray(random_x(rng, 3, 64), device)
    ids = asarray(np.zeros(3, np.int64), device)
    cases = (
        (
            TypeError,
            "experts:.*int32 or int64",
            dict(experts=asarray(np.zeros(3, np.uint8), device)),
        ),
        (ValueError, r"experts:.*\(3,\)", dict(experts=ids[:2])),
        (ValueError, "activations:.*int8", dict(experts=ids, activations="int4")),
        (TypeError, "activations:", dict(experts=ids, activations=8)),
        (ValueError, "activations:.*exact", dict(experts=ids, activations="int8", exact=True)),
        (TypeError, "out:.*float16", dict(experts=ids, out=asarray(np.zeros((3, 9), int), device))),
    )
    for kind, message, options in cases:
        with pytest.raises(kind, match=message):
            matmul(x, t, **options)
    with pytest.raises(ValueError, match="t: all of one format"):
        matmul(x, (t[0], random_tensor(rng, "Q4_0", 9, 64).to(device)))
    with pytest.raises(TypeError, match="t: expected a QuantTensor"):
        matmul(x, (t[0], x))
    with pytest.raises(ValueError, match="activations: on the CPU"):
        matmul(asnumpy(x), t[0].to("cpu"), activations="bfloat16")
    with pytest.raises(TypeError, match="x: expected float32 on cpu"):
        matmul(asnumpy(x).astype(np.float16), t[0].to("cpu"))
