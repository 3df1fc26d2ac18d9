"""concat against NumPy's own, and the cases by name that others got wrong."""

import os
import tempfile
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from lowlevel.concat import concat

RECORD = np.dtype([("scale", "f2"), ("quants", "u1", (3,)), ("id", ">i4")])
DTYPES = ["bool", "int8", "uint64", "float16", ml_dtypes.bfloat16, "float32", "float64"] + [
    "complex64",
    "S5",
    ">f4",
    "datetime64[s]",
    RECORD,
]


def random_array(rng, shape, dtype="float32"):
    """Any bits, so NaNs with payloads too; booleans that are 0 or 1."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(0, 256, n_bytes, np.uint8).view(dtype).reshape(shape)


def strided(rng, array):
    """The same elements in memory of another layout: padded, transposed, reversed."""
    kind = rng.integers(4)
    if kind == 0:
        return array
    if kind == 1:
        return np.asfortranarray(array)
    if kind == 2:
        roomy = np.empty([2 * n + 1 for n in array.shape], array.dtype)
        view = roomy[tuple(slice(0, 2 * n, 2) for n in array.shape)]
    else:
        view = np.empty_like(array)[tuple(slice(None, None, -1) for _ in array.shape)]
    view[...] = array
    return view


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def numpy_concatenate(arrays, axis):
    """np.concatenate, but of the bytes: it turns other byte orders into the machine's."""
    dtype = arrays[0].dtype
    items = [np.ascontiguousarray(array)[..., None].view("uint8") for array in arrays]
    return np.concatenate(items, axis % arrays[0].ndim).view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_any_shape_axis_layout_and_number(dtype, seed):
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 6))
    shape = rng.integers(0 if seed % 4 == 0 else 1, 6, ndim)
    axis = int(rng.integers(-ndim, ndim))
    arrays = []
    for _ in range(int(rng.choice([1, 2, 3, 20]))):
        shape[axis] = rng.integers(0, 5)  # empty pieces among them
        arrays.append(random_array(rng, shape, dtype))
    expected = numpy_concatenate(arrays, axis)
    inputs = [strided(rng, array) for array in arrays]
    joined = concat(inputs, axis)
    assert joined.flags.c_contiguous and joined.flags.owndata
    assert same_bits(joined, expected)
    out = strided(rng, np.zeros_like(expected))
    assert concat(inputs, axis, out=out) is out
    assert same_bits(np.ascontiguousarray(out), expected)


def test_one_array_is_copied():
    a = np.arange(6.0).reshape(2, 3)
    joined = concat([a], axis=1)
    assert same_bits(joined, a) and not np.shares_memory(joined, a)


def test_one_array_twice():
    a = np.arange(6)[::-1]
    assert concat((a, a, a)).tolist() == [5, 4, 3, 2, 1, 0] * 3


# ---------------------------------------------------------------- what others got wrong


def test_second_tensor_of_other_strides_is_not_read_as_if_contiguous():
    # ggml's CUDA concat (seen in llama.cpp PR 237's port) appended the second tensor as a plain block of memory.
    rng = np.random.default_rng(1)
    first = random_array(rng, (4, 3, 5))
    second = random_array(rng, (5, 4, 6)).transpose(1, 0, 2)[:, :3, ::-1][:, :, :5]
    joined = concat([first, second], 0)
    assert same_bits(joined[:4], first) and same_bits(joined[4:], np.ascontiguousarray(second))


def test_step_results_of_few_heads_joined_as_the_pr_does():
    # 128 heads in steps of 6 or 7, each step's result appended to those before.
    rng = np.random.default_rng(2)
    whole = random_array(rng, (128, 5, 16))
    steps = np.array_split(whole, 20)
    joined = steps[0]
    for step in steps[1:]:
        joined = concat([joined, step], 0)
    assert same_bits(joined, whole)
    assert same_bits(concat(steps, 0), whole)


def test_broadcast_inputs_with_zero_strides():
    row = np.arange(5, dtype="int16")
    wide = np.broadcast_to(row, (3, 4, 5))
    joined = concat([wide, np.zeros((3, 2, 5), "int16"), wide], axis=-2)
    assert same_bits(joined[:, :4], np.ascontiguousarray(wide))
    assert not joined[:, 4:6].any()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("long_axis", range(3))
def test_axes_longer_than_a_cuda_grids_y_and_z(axis, long_axis):
    shape = [2, 2, 2]
    shape[long_axis] = 65536 + 3
    rng = np.random.default_rng(axis)
    arrays = [random_array(rng, shape, "int8") for _ in range(2)]
    assert same_bits(concat(arrays, axis), np.concatenate(arrays, axis))


def test_more_arrays_than_a_cuda_grid_has_blocks_in_y():
    arrays = [np.full((1, 1), i, "int32") for i in range(66_000)]
    assert concat(arrays, -1).tolist() == [list(range(66_000))]


def test_strides_past_2_to_the_31():
    # A sparse file: gigabytes of addresses, a few pages of memory.
    with tempfile.TemporaryFile() as file:
        file.truncate(5 * 2**31)
        base = np.memmap(file, "uint8", "r+")
        source = as_strided(base, (3, 4), (2**31 + 4096, 1))
        source[...] = np.arange(12).reshape(3, 4)
        joined = concat([source[1:], source[::-1], source[:, ::-1]], 0)
        rows = np.arange(12, dtype="uint8").reshape(3, 4)
        assert same_bits(joined, np.concatenate([rows[1:], rows[::-1], rows[:, ::-1]]))

        out = as_strided(base[8192:], (2, 6), (2**32 + 4096, 1))
        concat([rows[:2], rows[1:, 2:]], 1, out=out)
        assert same_bits(np.ascontiguousarray(out), np.concatenate([rows[:2], rows[1:, 2:]], 1))
        assert base[8192 + 2**32 + 4096 + 5] == rows[2, 3]

        apart = as_strided(base[2**20 :], (3, 4), (2**32, 1))  # pieces that start past 2**31
        concat([rows[2:], rows[:1], rows[1:2]], 0, out=apart)
        assert same_bits(np.ascontiguousarray(apart), rows[[2, 0, 1]])
        assert base[2**20 + 2 * 2**32 + 3] == rows[1, 3]
        del base, source, out, apart


def test_lengths_past_2_to_the_31():
    pieces = [np.empty((2**31 + 1, 0), "int8"), np.empty((2**32, 0), "int8")]
    assert concat(pieces, 0).shape == (2**31 + 1 + 2**32, 0)
    sparse = as_strided(np.zeros(1, "int8"), (2**33, 0), (0, 1))
    assert concat([sparse, sparse], 0).shape == (2**34, 0)


@pytest.mark.skipif(
    "KQCAP_LARGE_TESTS" not in os.environ,
    reason="writes 2 GiB of memory: set KQCAP_LARGE_TESTS=1 to run it",
)
def test_elements_past_2_to_the_31_in_the_result():
    ones = np.broadcast_to(np.int8(1), 2**31 + 7)
    tail = np.arange(100, dtype="int8")
    joined = concat([tail, ones, tail])
    assert joined.shape == (2**31 + 207,)
    assert same_bits(joined[:100], tail) and same_bits(joined[-100:], tail)
    assert joined[100] == joined[-101] == 1


# ---------------------------------------------------------------- no hidden copies


@pytest.mark.parametrize("case", ["new", "out", "transposed", "interleaved", "interleaved 1-d"])
def test_nothing_of_the_inputs_size_is_allocated(case):
    rng = np.random.default_rng(4)
    n = 512
    concat([np.zeros(3)])  # loads what the first call loads
    if (
        case == "interleaved"
    ):  # left half and right half of one matrix: common addresses, no common element
        both = random_array(rng, (n, 2 * n), "int32")
        arrays, out = [both[: n // 2, n:], both[n // 2 :, n:]], both[:, :n]
    elif case == "interleaved 1-d":
        both = random_array(rng, 2 * n * n, "int32")
        arrays, out = [both[1 : n * n : 2], both[n * n + 1 :: 2]], both[::2]
    else:
        arrays = [random_array(rng, (n // 2, n), "int32") for _ in range(2)]
        if case == "transposed":
            arrays = [np.asfortranarray(array) for array in arrays]
        out = None if case == "new" else np.empty((n, n), "int32")
    expected = np.concatenate(arrays)
    tracemalloc.start()
    try:
        joined = concat(arrays, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert same_bits(np.ascontiguousarray(joined), expected)
    assert peak < (4 * n * n if case == "new" else 0) + 100_000


# ---------------------------------------------------------------- errors


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("arrays", "axis", "error", "match"),
    [
        ([], 0, ValueError, "arrays: expected at least one"),
        (zeros(2, 3), 0, TypeError, "arrays: expected a list or tuple of arrays, got ndarray"),
        ([[1, 2]], 0, TypeError, r"arrays\[0\]: expected a NumPy array, got list"),
        ([zeros(2), 3], 0, TypeError, r"arrays\[1\]"),
        ([np.ma.zeros(2)], 0, TypeError, "MaskedArray"),
        ([zeros()], 0, ValueError, r"arrays\[0\]: 0-d"),
        ([zeros(2), zeros()], 0, ValueError, r"arrays\[1\]: 0-d"),
        ([zeros(2, 3)], 2, ValueError, "axis: expected an int, -2 to 1.*got 2"),
        ([zeros(2, 3)], -3, ValueError, "axis"),
        ([zeros(2, 3)], 1.0, TypeError, "axis"),
        ([zeros(2, 3)], True, TypeError, "axis"),
        (
            [zeros(2), np.array(["a", None])],
            0,
            TypeError,
            r"arrays\[1\]: object holds Python objects",
        ),
        ([zeros(2, 3)], None, TypeError, "axis"),
        ([zeros(2, 3), zeros(4, 3), zeros(2, 4)], 0, ValueError, r"arrays\[2\]: shape \(2, 4\)"),
        ([zeros(2, 3), zeros(3, 3)], 1, ValueError, r"arrays\[1\].*that of axis 1"),
        ([zeros(2, 3), zeros(2, 3, 1)], 0, ValueError, r"arrays\[1\]"),
        ([zeros(2), zeros(2, dtype="float64")], 0, TypeError, r"arrays\[1\]: expected float32"),
        ([zeros(2), zeros(2, dtype=">f4")], 0, TypeError, r"arrays\[1\]"),
        ([np.array(["a", None], object)], 0, TypeError, r"arrays\[0\]: object holds"),
    ],
)
def test_what_does_not_fit_is_named(arrays, axis, error, match):
    with pytest.raises(error, match=match):
        concat(arrays, axis)


def self_overlapping():
    return as_strided(np.zeros(10, "float32"), (4, 3), (4, 4))


@pytest.mark.parametrize(
    ("make_out", "error", "match"),
    [
        (lambda inputs: [0] * 4, TypeError, "out: expected a NumPy array"),
        (lambda inputs: zeros(3, 4), ValueError, r"out: expected shape \(4, 3\), got \(3, 4\)"),
        (lambda inputs: zeros(4, 3, dtype="float64"), TypeError, "out: expected float32"),
        (
            lambda inputs: np.broadcast_to(zeros(3), (4, 3)),
            ValueError,
            "out: the array is read-only",
        ),
        (lambda inputs: as_strided(zeros(3), (4, 3), (0, 4)), ValueError, "two elements in one"),
        (lambda inputs: self_overlapping(), ValueError, "two elements in one"),
        (lambda inputs: inputs[1].base[:4], ValueError, r"out: shares memory with arrays\[1\]"),
    ],
)
def test_an_out_that_does_not_fit_is_refused_unwritten(make_out, error, match):
    inputs = [np.ones((2, 3), "float32"), np.ones((6, 3), "float32")[3:5]]
    out = make_out(inputs)
    before = np.array(out)
    with pytest.raises(error, match=match):
        concat(inputs, 0, out=out)
    assert (np.array(out) == before).all()
    assert all((array == 1).all() for array in inputs)
