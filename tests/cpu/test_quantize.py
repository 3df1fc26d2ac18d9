"""quant.quantize: held against ggml's own blocks (tests/golden), in every layout and thread count."""

import importlib
import os
import pathlib

import gguf
import numpy as np
import pytest
from quant_cases import decoded as decoded_rows

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from quant.cpu.quantize.iq4_nl import VALUES, nearest_value
from quant.formats import FORMATS, block_format
from quant.quantize import quantize

module = importlib.import_module("quant.quantize")  # the package has a function of that name
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "ggml_blocks.npz"
QUANTISED = tuple(row.name for row in FORMATS.values() if not row.is_float)
WEIGHED = ("normal", "outliers", "all_sizes")  # as in make_golden.py
ALL = (*QUANTISED, "F32", "F16", "BF16")
KINDS = (
    "normal student_t outliers sparse positive negative integers all_sizes denormal large constant "
    "zeros"
).split()
# Root mean square error over standard deviation of ggml's own blocks of 2**16 normal weights or more
# (made with ggml_quantize of tests/golden/make_golden.py).
GGML_ERROR = {
    "Q8_0": 0.00535,
    "Q4_0": 0.08596,
    "IQ4_NL": 0.07610,
    "Q2_K": 0.29669,
    "Q3_K": 0.15092,
    "Q4_K": 0.07129,
    "Q6_K": 0.01772,
    "IQ4_XS": 0.07669,
    "Q4_1": 0.07821,
    "Q5_0": 0.04268,
    "Q5_1": 0.03785,
    "Q5_K": 0.03611,
    "MXFP4": 0.11810,  # the most: its scales are powers of two, and weights twice as large have 0.1134 to 0.1181 between
    "IQ2_XXS": 0.34229,
    "IQ2_XS": 0.29834,
    "IQ2_S": 0.26371,
    "IQ3_XXS": 0.20950,
    "IQ3_S": 0.16434,
    "IQ1_S": 0.48287,
    "IQ1_M": 0.57785,
    "TQ1_0": 0.80754,
    "TQ2_0": 0.80754,
    "NVFP4": 0.09494,
    "Q1_0": 0.59942,
    "Q2_0": 0.71595,
}
# ggml leaves a sub-block of IQ3_S that is all zeros without moving on, and writes the ones behind it in their
# predecessors' places: there the weights count, not its bytes.
MISPLACED = {("sparse", "IQ3_S")}


def decoded(tensor):
    """The weights of a QuantTensor by the gguf package."""
    rows = np.ascontiguousarray(tensor.data).reshape(-1, tensor.data.shape[-1])
    return decoded_rows(rows, tensor.format).reshape(tensor.shape)


def rmse(tensor, weights):
    return np.sqrt(np.mean((decoded(tensor).astype(np.float64) - weights) ** 2))


def is_coarse(type_name):
    """Whether a weight alone in its block is off by more than a few percent: scales of few bits, or not those of the best fit."""
    return type_name in ("MXFP4", "NVFP4") or bool(block_format(type_name).grid)


def overflows(weights, blocks, type_name):
    """Whether ggml wrote an infinite scale or minimum (weights of `large` as a minimum of half precision), or the greatest
    scale of eight bits for weights that are greater."""
    if type_name == "NVFP4":
        return np.abs(weights).max() > 448 * 6
    records = blocks.view(block_format(type_name).block_dtype)
    halves = [field.name for field in block_format(type_name).fields if field.dtype == "<f2"]
    return not all(np.isfinite(records[name]).all() for name in halves)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def rng():
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- against ggml


@pytest.mark.parametrize("type_name", QUANTISED)
@pytest.mark.parametrize("kind", KINDS)
def test_golden_blocks_are_the_same_bytes(golden, kind, type_name):
    weights, blocks = golden[f"input/{kind}"], golden[f"blocks/{kind}/{type_name}"]
    if overflows(weights, blocks, type_name):
        with pytest.raises(ValueError, match="is too large for"):
            quantize(weights, type_name)
        return
    tensor = quantize(weights, type_name)
    if (kind, type_name) in MISPLACED:
        theirs = decoded_rows(blocks, tensor.format).astype(np.float64)
        assert rmse(tensor, weights) < 0.5 * np.sqrt(np.mean((theirs - weights) ** 2))
        return
    np.testing.assert_array_equal(tensor.data, blocks)


@pytest.mark.parametrize("type_name", QUANTISED)
@pytest.mark.parametrize("kind", WEIGHED)
def test_golden_blocks_with_an_importance_matrix(golden, kind, type_name):
    """Those of types that take no notice of it are those without."""
    weights, importance = golden[f"input/{kind}"], golden["importance"]
    blocks = golden.get(f"weighed/{kind}/{type_name}", golden[f"blocks/{kind}/{type_name}"])
    if not overflows(weights, blocks, type_name):
        found = quantize(weights, type_name, imatrix=importance)
        np.testing.assert_array_equal(found.data, blocks)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "IQ2_S"])
def test_experts_have_importance_of_their_own(rng, type_name, monkeypatch):
    """Rows are cut into chunks that end with a matrix; any memory layout gives the same bytes."""
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2 * 512)
    weights = rng.standard_normal((3, 5, 512), np.float32)
    importance = rng.random((3, 512), np.float32)
    together = quantize(weights, type_name, imatrix=importance, n_threads=2)
    turned = quantize(np.asfortranarray(weights), type_name, imatrix=importance)
    np.testing.assert_array_equal(turned.data, together.data)
    assert not np.array_equal(together.data, quantize(weights, type_name).data)
    for expert in range(3):
        alone = quantize(weights[expert], type_name, imatrix=importance[expert])
        np.testing.assert_array_equal(together.data[expert], alone.data)


@pytest.mark.parametrize("type_name", ["Q3_K", "Q5_1", "IQ4_NL", "IQ3_XXS", "IQ1_M"])
def test_importance_lowers_the_error_that_it_counts(rng, type_name):
    weights = rng.standard_normal((8, 1024), np.float32)
    importance = (rng.random(1024) ** 6 + 1e-3).astype(np.float32)

    def counted(**options):
        error = decoded(quantize(weights, type_name, **options)).astype(np.float64) - weights
        return np.mean(importance * error**2)

    assert counted(imatrix=importance) < 0.98 * counted()


@pytest.mark.parametrize(
    ("imatrix", "error", "message"),
    [
        ([1.0] * 256, TypeError, "imatrix: expected a NumPy array of float32, got list"),
        (np.ones(256), TypeError, "imatrix: .* got float64"),
        (
            np.ones(255, "f4"),
            ValueError,
            r"imatrix: expected shape \(256,\) or \(2, 256\) .*\(255,\)",
        ),
        (np.full(256, -1, "f4"), ValueError, "imatrix: must be finite and not negative"),
        (np.full(256, np.nan, "f4"), ValueError, "imatrix: must be finite"),
    ],
)
def test_what_is_no_importance_matrix_is_refused(imatrix, error, message):
    for type_name in ("Q4_K", "Q8_0"):
        with pytest.raises(error, match=message):
            quantize(np.zeros((2, 3, 256), np.float32), type_name, imatrix=imatrix)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "F32", "F16", "BF16"])
def test_fresh_weights_give_the_gguf_packages_bytes(rng, type_name):
    weights = rng.standard_t(3, (rng.integers(1, 40), 256 * rng.integers(1, 9)))
    weights = weights.astype(np.float32)
    tensor = quantize(weights, type_name)
    expected = gguf.quants.quantize(weights, tensor.qtype)
    np.testing.assert_array_equal(tensor.data, expected.view(np.uint8))


@pytest.mark.parametrize("type_name", QUANTISED)
def test_fresh_normal_weights_have_ggmls_error(rng, type_name):
    weights = rng.standard_normal((8, 2048), np.float32) * np.float32(10.0 ** rng.uniform(-1, 2))
    error = rmse(quantize(weights, type_name), weights) / weights.std()
    assert error <= 1.03 * GGML_ERROR[type_name]


# ---------------------------------------------------------------- layouts and threads


@pytest.mark.parametrize("type_name", ALL)
def test_any_number_of_threads_gives_the_same_bytes(rng, type_name, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2**11)
    weights = rng.standard_normal((5, 3, 768), np.float32)  # six chunks, the last one short
    one = quantize(weights, type_name, n_threads=1)
    for n_threads in (2, 3, 64, None):
        np.testing.assert_array_equal(
            quantize(weights, type_name, n_threads=n_threads).data, one.data
        )


@pytest.mark.parametrize("type_name", ALL)
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 15, 16, 17, 33])
def test_a_block_depends_on_itself_only(rng, type_name, n_blocks):
    weights = rng.standard_normal((n_blocks, 256), np.float32)
    tensor = quantize(weights, type_name)
    assert tensor.shape == weights.shape
    assert tensor.format.name == type_name
    for row in range(n_blocks):
        alone = quantize(weights[row], type_name)  # one row: (columns,)
        assert alone.shape == (256,)
        np.testing.assert_array_equal(tensor.data[row], alone.data)


@pytest.mark.parametrize("type_name", ALL)
def test_any_memory_layout_gives_the_same_bytes(rng, type_name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2**11)
    weights = rng.standard_normal((3, 7, 768)).astype(np.float16).astype(np.float32)
    expected = quantize(weights, type_name).data

    read_only = weights.copy()
    read_only.flags.writeable = False
    padded = np.zeros((6, 8, 800), np.float32)
    padded[::-2, 1:, 16:784] = weights
    unaligned = np.zeros(weights.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(weights.shape)
    unaligned[:] = weights
    weights.tofile(tmp_path / "weights")
    layouts = {
        "float16": weights.astype(np.float16),
        "read-only": read_only,
        "strided": padded[::-2, 1:, 16:784],
        "transposed": np.asfortranarray(weights),
        "big-endian": weights.astype(">f4"),
        "unaligned": unaligned,
        "mapped": np.memmap(tmp_path / "weights", np.float32, "r", shape=weights.shape),
    }
    for name, layout in layouts.items():
        given = layout.copy(order="K")
        np.testing.assert_array_equal(quantize(layout, type_name).data, expected, err_msg=name)
        np.testing.assert_array_equal(layout, given)


@pytest.mark.parametrize("type_name", ALL)
@pytest.mark.parametrize("shape", [(0,), (0, 256), (3, 0), (0, 5, 512), (2, 0, 256)])
def test_empty_arrays_give_empty_tensors(type_name, shape):
    tensor = quantize(np.empty(shape, np.float32), type_name)
    assert tensor.shape == shape
    assert tensor.data.size == 0


# ---------------------------------------------------------------- special values


@pytest.mark.parametrize("type_name", ALL)
def test_rows_of_zeros_stay_zero_between_others(rng, type_name):
    weights = rng.standard_normal((9, 512), np.float32)
    weights[[0, 3, 4, 8]] = 0.0
    result = decoded(quantize(weights, type_name))
    assert not result[[0, 3, 4, 8]].any()
    assert result[[1, 2, 5, 6, 7]].any(axis=-1).all()


@pytest.mark.parametrize("type_name", ALL)
def test_constant_rows_come_back_nearly(rng, type_name):
    # Not near zero: super-block scales are float16, with few bits where they are subnormal.
    column = rng.uniform(0.05, 3, (8, 1)) * rng.choice([-1, 1], (8, 1))
    weights = np.repeat(column, 256, axis=-1).astype(np.float32)
    result = decoded(quantize(weights, type_name))
    # A scale has at least 4 bits (Q2_K) of the super-block's, which this one sets itself.
    error = np.abs(result / weights - 1)
    if is_coarse(type_name):
        assert np.sqrt(np.mean(error**2)) < 0.4
    else:
        assert error.max() < 2**-7


@pytest.mark.parametrize("type_name", QUANTISED)
def test_weights_too_small_for_a_half_precision_scale_become_zero(rng, type_name):
    if block_format(type_name).fields[0].name == "e":
        return  # which has no such scale
    for size in (1e-45, 1e-40, 1e-30, 1e-12):
        weights = (rng.standard_normal((3, 512)) * size).astype(np.float32)
        assert not decoded(quantize(weights, type_name)).any()


@pytest.mark.parametrize("type_name", ["F16", *QUANTISED])
def test_the_largest_weights_fit_or_are_refused(rng, type_name):
    """From where a scale overflows on, an error; below, a sound result: never inf or garbage."""
    refused = False
    for exponent in np.arange(10.0, 38.0, 0.5):
        weights = rng.uniform(-1, 1, (2, 512))
        weights[1, 300] = 2.0**exponent
        weights = weights.astype(np.float32)
        try:
            tensor = quantize(weights, type_name)
        except ValueError as error:
            refused = True
            assert "x[1, 300] = " in str(error)
            assert "too large" in str(error) and "BF16 or F32" in str(error)
        else:
            assert not refused
            found = decoded(tensor)
            assert np.isfinite(found).all()
            if type_name != "Q1_0":  # the mean size of 128 weights
                rel = 0.35 if is_coarse(type_name) else 0.1
                assert found[1, 300] == pytest.approx(weights[1, 300], rel=rel)
    assert refused


def test_bfloat16_refuses_what_would_round_to_infinity():
    largest = np.float32(2.0**127 * (2 - 2**-7))
    between = np.nextafter(np.float32(2.0**127 * (2 - 2**-8)), np.float32(0))
    tensor = quantize(np.array([largest, -between, 1.0], np.float32), "BF16")
    assert decoded(tensor).tolist() == [largest, -largest, 1.0]
    with pytest.raises(ValueError, match=r"x\[1\] = 3.39618e\+38 is too large for BF16.*use F32"):
        quantize(np.array([1, np.nextafter(between, np.float32(np.inf))], np.float32), "BF16")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ALL)
def test_the_first_weight_that_is_not_finite_is_named(rng, type_name, bad, dtype, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2**11)
    weights = rng.standard_normal((3, 10, 512), np.float32).astype(dtype)
    n, row, column = (int(rng.integers(0, size)) for size in weights.shape)
    weights[n, row, column] = bad
    weights.reshape(-1)[np.ravel_multi_index((n, row, column), weights.shape) :: 1009] = bad
    where = rf"x: weights must be finite; x\[{n}, {row}, {column}\] is -?(nan|inf)"
    for n_threads in (1, 3):
        with pytest.raises(ValueError, match=where):
            quantize(weights, type_name, n_threads=n_threads)
        with pytest.raises(ValueError, match=where):
            quantize(np.asfortranarray(weights), type_name, n_threads=n_threads)


# ---------------------------------------------------------------- pieces of the kernels


@kernel
def indices_of_nearest(x, out):
    for i in range(0, len(x), 16):
        simd.store(out, i, nearest_value(simd.load_f32x16(x, i)))


def test_iq4_nl_nearest_value_at_every_border(rng):
    middles = ((VALUES[1:] + VALUES[:-1]) / 2).astype(np.float32)
    special = np.concatenate([middles, VALUES, np.float32([0, -0.0, 1e-45, 1e9, -1e9])])
    special = np.append(special, [np.inf, -np.inf]).astype(np.float32)
    below = np.nextafter(special, np.float32(-np.inf))
    above = np.nextafter(special, np.float32(np.inf))
    x = np.concatenate([special, below, above, rng.uniform(-140, 140, 10**5).astype(np.float32)])
    x = x[: len(x) // 16 * 16]
    out = np.empty(len(x), np.int32)
    indices_of_nearest(x, out)
    # A weight half-way goes to the upper value, as in ggml.
    np.testing.assert_array_equal(out, np.searchsorted(middles, x, side="right"))


def test_q8_0_rounds_away_from_zero_at_exact_halves():
    steps = np.arange(0.5, 15.5)
    row = np.concatenate([[127], steps, [np.nextafter(np.float32(0.5), np.float32(0))]])
    row = np.concatenate([row, -row[1:]]).astype(np.float32)  # scale 1: nothing else is rounded
    row = np.append(row, np.zeros(-len(row) % 32, np.float32)).reshape(1, -1)[:, :32]
    levels = quantize(row, "Q8_0").data[0, 2:].view(np.int8)
    expected = np.sign(row) * np.floor(np.abs(row.astype(np.float64)) + 0.5)
    np.testing.assert_array_equal(levels, expected[0])


# ---------------------------------------------------------------- bad use


@pytest.mark.parametrize("type_name", QUANTISED)
def test_columns_that_fill_no_blocks_are_refused_with_what_works(type_name):
    row = block_format(type_name)
    columns = 576 if row.block_weights == 256 else 40
    with pytest.raises(ValueError) as error:
        quantize(np.zeros((4, columns), np.float32), row.name)
    message = str(error.value)
    assert message.startswith("x: ") and row.name in message and f"{columns} columns" in message
    working = message.split("these types work: ")[1].split(", ")
    assert set(working) == {r for r in ALL if columns % block_format(r).block_weights == 0}
    for name in working:
        quantize(np.zeros((1, columns), np.float32), name)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0] * 256], TypeError, "x: expected a NumPy array, got list"),
        (np.zeros((2, 256)), TypeError, "x: .*got float64; x.astype"),
        (np.zeros((2, 256), np.int8), TypeError, "x: .*got int8"),
        (np.zeros((2, 256), object), TypeError, "x: .*got object"),
        (np.float32(1), TypeError, "x: .*got float32"),
        (np.array(1, np.float32), ValueError, "x: .*single number"),
    ],
)
def test_what_is_no_array_of_weights_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        quantize(x, "F32")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"qtype": "Q8_K"}, ValueError, "qtype: Q8_K is not supported.*Q4_K"),
        ({"qtype": "Q9"}, ValueError, "qtype: 'Q9'"),
        ({"qtype": 8}, TypeError, "qtype"),
        ({"qtype": "Q8_0", "n_threads": 0}, ValueError, "n_threads"),
        ({"qtype": "Q8_0", "n_threads": 1.5}, TypeError, "n_threads"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        quantize(np.zeros((1, 256), np.float32), **arguments)


def test_a_type_may_be_given_as_name_enum_or_format(rng):
    weights = rng.standard_normal((2, 256), np.float32)
    expected = quantize(weights, "q2_k").data
    for qtype in (gguf.GGMLQuantizationType.Q2_K, "Q2_K", block_format("Q2_K")):
        np.testing.assert_array_equal(quantize(weights, qtype).data, expected)


def test_blocks_go_where_the_caller_says():
    x = np.random.default_rng(3).standard_normal((3, 5, 64), np.float32)
    expected = quantize(x, "Q8_0")
    out = np.empty((3, 5, 68), np.uint8)
    t = quantize(x, "Q8_0", out=out)
    assert t.data.base is out or t.data is out
    np.testing.assert_array_equal(out, expected.data)
    for bad in (out[:2], out.astype(np.int8), out[:, ::-1], x.view(np.uint8)[..., :68]):
        with pytest.raises(ValueError, match="out"):
            quantize(x, "Q8_0", out=bad)
