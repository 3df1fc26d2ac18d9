"""Shared memory: bounds, unwritten reads, races, asynchronous copies read too early."""

import numpy as np
import pytest
from quant_cases import CHECKED
from sim_kernels import ORDERS, line_of

from lowlevel import cudasim

ROWS = 3


def _reverse(function, rng, **changes):
    x = rng.standard_normal((ROWS, 64)).astype(np.float32)
    y = cudasim.empty((ROWS, 64))
    function((ROWS,), (64,), (x, y), shared_mem=256, **changes)
    np.testing.assert_array_equal(y, x[:, ::-1])


def test_correct_kernels(anywhere, rng):
    _reverse(anywhere("shared.cu", "reverse_rows"), rng)
    assert _gemm(anywhere("gemm_mma.cu", "gemm_mma"), rng)
    assert _softmax(anywhere("softmax.cu", "softmax_rows"), rng)
    x, counts = rng.integers(0, 1 << 30, 5000).astype(np.int32), np.zeros(16, np.int32)
    anywhere("shared.cu", "histogram")((4,), (128,), (x, counts, np.int32(x.size)))
    np.testing.assert_array_equal(counts, np.bincount(x & 15, minlength=16))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [{}, {"race": True, "ub": True}])
def test_correct_kernel_passes(kernel, rng, order, mode):
    _reverse(kernel("shared.cu", "reverse_rows"), rng, order=order, **mode)


@pytest.mark.parametrize(("bug", "text", "message", "order"), [
    ("BUG_STATIC_PAST", "tile[n] = 1", r"write to shared tile\[64\]", "fifo"),
    ("BUG_STATIC_BEFORE", " tile[t - 10]", r"write to shared tile\[-1\]", "lifo"),
    ("BUG_DYNAMIC_PAST", "staged[n] = 1", r"write to shared dynamic shared memory\[64\]", "random"),
    ("BUG_DYNAMIC_BEFORE", "staged[t - 10]", r"write to shared dynamic shared memory\[-1\]", "reverse"),
])  # fmt: skip
def test_out_of_bounds(kernel, rng, bug, text, message, order):
    function = kernel("shared.cu", "reverse_rows", bug)
    with pytest.raises(cudasim.OutOfBoundsError, match=message) as caught:
        _reverse(function, rng, order=order)
    assert caught.value.line == line_of("shared.cu", text)
    assert caught.value.thread == (9, 0, 0)
    for other in ORDERS:  # where the guard page is on the other side, the slack tells
        with pytest.raises(cudasim.OutOfBoundsError, match="out of bounds"):
            _reverse(function, rng, order=other)
        with pytest.raises(cudasim.OutOfBoundsError, match="out of bounds"):
            _reverse(function, rng, order=other, race=True)


@pytest.mark.parametrize("mode", [{"ub": True}, CHECKED], ids=["ub", "checked"])
def test_inner_index_of_an_array(kernel, rng, mode):
    with pytest.raises(
        cudasim.OutOfBoundsError, match="index 64 of an array of type 'float \\[64\\]'"
    ) as caught:
        _reverse(kernel("shared.cu", "reverse_rows", "BUG_INNER"), rng, **mode)
    assert caught.value.line == line_of("shared.cu", "[t + 1] = twisted")


@pytest.mark.parametrize("mode", [{"race": True}, CHECKED], ids=["race", "checked"])
@pytest.mark.parametrize(("bug", "name", "index"), [
    ("BUG_UNSET", "tile", 5), ("BUG_UNSET_DYNAMIC", "dynamic shared memory", 5),
])  # fmt: skip
def test_unwritten_shared_memory(kernel, rng, mode, bug, name, index):
    function = kernel("shared.cu", "reverse_rows", bug)
    for order in ORDERS:
        with pytest.raises(AssertionError, match="nan"):
            _reverse(function, rng, order=order)
        with pytest.raises(cudasim.UninitialisedError, match=rf"read of shared {name}\[{index}\]"):
            _reverse(function, rng, order=order, **mode)


@pytest.mark.parametrize("mode", [{"race": True}, CHECKED], ids=["race", "checked"])
@pytest.mark.parametrize(("bug", "variable", "lines"), [
    ("BUG_RACE", "tile", {"    tile[t] = row[t]", "reversed = tile["}),
    ("BUG_WARP_RACE", "warp_tile", {"warp_tile[t / 32][lane] =", "twisted = warp_tile"}),
])  # fmt: skip
def test_races_name_variable_lines_and_threads(kernel, rng, mode, bug, variable, lines):
    function = kernel("shared.cu", "reverse_rows", bug)
    for order in ORDERS:
        # The read may come first: then it is a read of memory that nobody has written yet.
        with pytest.raises(
            (cudasim.RaceError, cudasim.UninitialisedError), match=rf"shared {variable}\["
        ) as caught:
            _reverse(function, rng, order=order, **mode)
        assert caught.value.line in {line_of("shared.cu", text) for text in lines}
    wrong = 0
    for order in ORDERS:
        try:
            _reverse(function, rng, order=order)
        except AssertionError:
            wrong += 1
    assert wrong, "no schedule order shows the missing barrier"


def _softmax(function, rng, **changes):
    x = rng.standard_normal((2, 300)).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    exact /= exact.sum(1, keepdims=True)
    y = cudasim.empty(x.shape)
    arguments = (x, None, y, np.int32(300), np.float32(1))
    function((2,), (96,), arguments, shared_mem=1200, **changes)
    return np.allclose(y, exact, atol=1e-6)


@pytest.mark.parametrize("bug", ["BUG_WAR", "BUG_RAW"])
def test_race_of_a_block_reduction(kernel, rng, bug):
    correct, wrong = kernel("softmax.cu", "softmax_rows"), kernel("softmax.cu", "softmax_rows", bug)
    assert all(
        _softmax(correct, rng, order=order, race=race) for order in ORDERS for race in (False, True)
    )
    assert not all(_softmax(wrong, rng, order=order) for order in ORDERS), (
        "no schedule order shows it"
    )
    for order in ORDERS:
        with pytest.raises(
            (cudasim.RaceError, cudasim.UninitialisedError), match=r"shared partial\["
        ) as caught:
            _softmax(wrong, rng, order=order, race=True)
        if isinstance(caught.value, cudasim.RaceError):
            assert f"softmax.cu:{line_of('softmax.cu', 'v = lane < n_warps')}" in str(caught.value)
            assert "barrier between" in str(caught.value)
            assert str(caught.value).count("thread (") == 2


def test_histogram_with_atomics_is_no_race_but_without_is(kernel, rng):
    x = rng.integers(0, 1 << 30, 5000).astype(np.int32)
    for order in ORDERS:
        counts = np.zeros(16, np.int32)
        kernel("shared.cu", "histogram")(
            (4,), (128,), (x, counts, np.int32(x.size)), order=order, race=True
        )
        np.testing.assert_array_equal(counts, np.bincount(x & 15, minlength=16))
    with pytest.raises(cudasim.RaceError, match="blocks of one launch are not ordered") as caught:
        kernel("shared.cu", "histogram", "BUG_PLAIN")(
            (4,), (128,), (x, counts, np.int32(x.size)), race=True
        )
    assert caught.value.line == line_of("shared.cu", "counts[threadIdx.x] += local")
    assert "race on counts[" in str(caught.value)


def _gemm(function, rng, size=128, **changes):
    a, b = (rng.standard_normal((size, size)).astype(np.float16) for _ in range(2))
    c = cudasim.empty((size, size))
    shared = 2 * 2 * (64 * 40 + 32 * 72)
    arguments = (a, b, c, np.int32(size), np.int32(size))
    function((size // 64, size // 64), (128,), arguments, shared_mem=shared, **changes)
    return np.allclose(c, a.astype(np.float32) @ b.astype(np.float32), atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_gemm_passes(kernel, rng, order):
    assert _gemm(kernel("gemm_mma.cu", "gemm_mma"), rng, order=order)


def test_gemm_passes_in_race_mode(kernel, rng):
    assert _gemm(kernel("gemm_mma.cu", "gemm_mma"), rng, race=True)


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copy_read_too_early(kernel, rng, order):
    function = kernel("gemm_mma.cu", "gemm_mma", "BUG_WAIT")
    assert not _gemm(function, rng, order=order)
    with pytest.raises(
        cudasim.RaceError, match="no wait has covered the asynchronous copy"
    ) as caught:
        _gemm(function, rng, order=order, race=True)
    issued = line_of("gemm_mma.cu", "ptx::cp_async_16(stage_a")
    assert f"gemm_mma.cu:{issued} " in str(caught.value)
    assert caught.value.line == line_of("gemm_mma.cu", "stage_a[stage] + (warp_row") - 1


def test_stage_refilled_while_others_read_it(kernel, rng):
    function = kernel("gemm_mma.cu", "gemm_mma", "BUG_BARRIER")
    assert not all(_gemm(function, rng, order=order) for order in ORDERS)
    with pytest.raises(cudasim.RaceError, match="barrier between"):
        _gemm(function, rng, race=True)
