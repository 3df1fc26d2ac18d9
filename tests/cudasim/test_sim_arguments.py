"""Arguments: what fits, what is refused by name, arrays of any layout."""

import numpy as np
import pytest

from lowlevel import cudasim

SHAPE = np.dtype([("rows", "i4"), ("columns", "i4"), ("scale", "f4")])


def _parameters():
    return [
        np.int8(-3), np.uint8(200), np.int16(-30000), np.uint16(60000), np.int32(-(2**31)),
        np.uint32(2**32 - 1), np.int64(-(2**53)), np.uint64(2**53), np.float32(0.5), np.float64(1 / 3),
        np.bool_(True), np.float16(1.5), np.array((3, 4, 0.25), SHAPE)[()], None, np.zeros(16),
    ]  # fmt: skip


def test_every_kind_of_parameter(kernel):
    arguments = _parameters()
    kernel("intrinsics.cu", "parameters")((1,), (1,), arguments)
    expected = [float(value) for value in arguments[:12]] + [3, 4, 0.25, 1]
    assert arguments[-1].tolist() == expected


@pytest.mark.parametrize(("index", "name", "wrong", "message"), [
    (4, "i32", 8, "takes int32.*not int 8"),
    (4, "i32", np.int64(8), "takes int32.*not numpy.int64 8"),
    (6, "i64", 8, "takes int64.*not int 8"),
    (8, "f32", 0.5, "takes float32.*not float 0.5"),
    (8, "f32", np.float64(0.5), "takes float32.*not numpy.float64"),
    (9, "f64", np.float32(0.5), "takes float64"),
    (10, "flag", True, "takes bool.*not bool True"),
    (11, "f16", np.uint16(3), "takes float16"),
    (12, "shape", np.zeros((), [("rows", "i4")])[()], "struct of 12 bytes"),
    (8, "f32", np.zeros(1, np.float32), "takes float32.*not an array"),
    (13, "missing", np.zeros(4), "pointer to float32, got an array of float64"),
    (13, "missing", [1.0, 2.0], "pointer to float32; give an array"),
    (13, "missing", np.int64(4), "pointer to float32; give an array"),
    (13, "missing", cudasim.PointerTable([]), "a pointer table, but"),
    (14, "out", np.zeros(16, np.float32), "pointer to float64, got an array of float32"),
    (14, "out", np.broadcast_to(np.zeros(1), 16), "the array is read-only"),
    (14, "out", np.zeros(129, np.uint8)[1:].view(np.float64), "multiple of 8; this array starts 1 bytes off"),
])  # fmt: skip
def test_wrong_arguments_are_refused_by_name(kernel, index, name, wrong, message):
    arguments = _parameters()
    arguments[index] = wrong
    with pytest.raises(
        cudasim.ArgumentError, match=rf"parameters: argument {index} \({name}\): .*{message}"
    ):
        kernel("intrinsics.cu", "parameters")((1,), (1,), arguments)


def test_number_of_arguments(kernel):
    with pytest.raises(
        cudasim.ArgumentError, match=r"2 arguments given, 3 declared \(x, stride, n\)"
    ):
        kernel("intrinsics.cu", "stride_kernel")((1,), (1,), (np.zeros(3, np.float32), np.int64(1)))


@pytest.mark.parametrize(("grid", "block", "shared_mem", "message"), [
    ((0,), (1,), 0, r"grid=\(0, 1, 1\)"),
    ((1, 65536), (1,), 0, "grid"),
    ((1,), (1025,), 0, "block"),
    ((1,), (64, 64), 0, "4096 threads; at most 1024"),
    ((1,), (1, 1, 65), 0, "block"),
    ((1.5,), (1,), 0, "whole numbers"),
    ((1,), (1,) * 4, 0, "1 to 3"),
    ((1,), (1,), 49153, "max_dynamic_shared_size_bytes"),
    ((1,), (1,), -1, "shared_mem=-1"),
])  # fmt: skip
def test_launch_limits(kernel, grid, block, shared_mem, message):
    with pytest.raises(cudasim.LaunchError, match=message):
        kernel("intrinsics.cu", "greet")(grid, block, (np.int32(1),), shared_mem=shared_mem)


def test_large_dynamic_shared_memory_needs_the_opt_in(kernel):
    function = kernel("intrinsics.cu", "greet")
    function.max_dynamic_shared_size_bytes = 100_000
    function((1,), (1,), (np.int32(1),), shared_mem=100_000)
    function.max_dynamic_shared_size_bytes = 1 << 20
    with pytest.raises(cudasim.LaunchError, match="may have 232448 bytes"):
        function((1,), (1,), (np.int32(1),), shared_mem=232449)


@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_strided_arrays_pass_their_first_element(kernel, rng, step):
    base = rng.standard_normal(31).astype(np.float32)
    before, view = base.copy(), base[::step]
    n = view.size
    kernel("intrinsics.cu", "stride_kernel")((1,), (32,), (view, np.int64(step), np.int32(n)))
    before[::step] += 1
    np.testing.assert_array_equal(base, before)


def test_empty_arrays_and_null_pointers(kernel):
    function = kernel("intrinsics.cu", "stride_kernel")
    for nothing in (np.zeros(0, np.float32), None, np.uint64(0)):
        function((1,), (32,), (nothing, np.int64(1), np.int32(0)))
        with pytest.raises(cudasim.OutOfBoundsError):
            function((1,), (32,), (nothing, np.int64(1), np.int32(1)))


def test_pointer_tables(kernel, rng):
    arrays = [rng.standard_normal(16).astype(np.float32) for _ in range(5)]
    arrays.append(arrays[0])  # twice the same
    out = cudasim.empty(16)
    arguments = (cudasim.PointerTable(arrays), np.int32(6), out)
    kernel("intrinsics.cu", "sum_table")((1,), (16,), arguments)
    np.testing.assert_allclose(out, sum(a.astype(np.float64) for a in arrays), rtol=1e-5)
    with pytest.raises(cudasim.OutOfBoundsError, match=r"read of arrays\[\d\]\[16\]"):
        kernel("intrinsics.cu", "sum_table")(
            (1,), (17,), (*arguments[:2], np.zeros(17, np.float32))
        )


def test_arrays_of_the_device(rng):
    x = rng.standard_normal((3, 5)).astype(np.float32)
    on_device = cudasim.asarray(x)
    assert isinstance(on_device, cudasim.CudaSimArray) and on_device.device == "cudasim"
    assert on_device.ctypes.data % 256 == 0 and cudasim.asarray(on_device) is on_device
    assert type(cudasim.asnumpy(on_device)) is np.ndarray
    np.testing.assert_array_equal(cudasim.asnumpy(on_device[1:, ::2]), x[1:, ::2])
    assert isinstance(on_device[1:], cudasim.CudaSimArray)
    for dtype in ("float16", "float32", "float64"):
        assert np.isnan(cudasim.empty((4, 3), dtype)).all()
    assert cudasim.empty((), "int32").shape == () and cudasim.empty((0, 3)).size == 0
    with pytest.raises(ValueError, match="C-contiguous"):
        cudasim.poison(np.zeros((4, 4))[:, ::2])


def test_settings_apply_to_all_launches_and_are_checked(kernel):
    with cudasim.settings(order="lifo", seed=4):
        assert cudasim.current_settings().order == "lifo"
        with cudasim.settings(race=True):
            assert cudasim.current_settings() == cudasim.Settings(
                order="lifo", seed=4, race=True, workers=cudasim.current_settings().workers
            )
    for wrong in ({"order": "fast"}, {"workers": 0}, {"hang_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kernel("intrinsics.cu", "greet")((1,), (1,), (np.int32(1),), **wrong)
