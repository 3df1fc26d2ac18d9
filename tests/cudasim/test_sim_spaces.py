"""Shared memory and device variables at file scope, attributes of kernels, what lies just beside."""

import numpy as np
import pytest
from sim_kernels import KERNELS, ORDERS, line_of

from lowlevel import cudasim

FILL = 'extern "C" __global__ void fill(int* x, int value) { x[threadIdx.x] = value; }\n'


@pytest.mark.parametrize("order", ORDERS)
def test_dynamic_shared_memory_at_file_scope(kernel, order):
    y = cudasim.empty(64)
    kernel("spaces.cu", "rotate")((2,), (32,), (y,), shared_mem=128, order=order)
    np.testing.assert_array_equal(y, np.tile(np.roll(np.arange(32), -1) + 2.25, 2))


@pytest.mark.parametrize(("order", "i"), [("random", 33), ("reverse", -1), ("fifo", 36)])
def test_it_is_guarded(kernel, order, i):
    """33 elements: only "random" has no room between the last one and the guard page."""
    function = kernel("spaces.cu", "dynamic_element")
    arguments = (np.int32(32), np.zeros(1, np.float32))
    function((1,), (32,), arguments, shared_mem=132, order=order)
    with pytest.raises(
        cudasim.OutOfBoundsError, match=rf"write to shared dynamic shared memory\[{i}\]"
    ) as caught:
        function((1,), (32,), (np.int32(i), arguments[1]), shared_mem=132, order=order)
    assert caught.value.line == line_of("spaces.cu", "whole[i] = 1")


def test_attributes_on_either_side_of_global(kernel):
    function = kernel("spaces.cu", "rotate")
    with pytest.raises(cudasim.KernelLaunchError, match=r"65 threads.*allows 64"):
        function((2,), (65,), (np.zeros(130, np.float32),), shared_mem=260)
    with pytest.raises(cudasim.KernelLaunchError, match=r"no whole number of clusters of \(2, 1"):
        function((3,), (32,), (np.zeros(96, np.float32),), shared_mem=128)


def test_structures_by_value_are_aligned_as_they_ask(kernel):
    y = np.zeros(1, np.int32)
    map_ = np.array((np.arange(16) ** 2,), [("values", "i4", 16)])[()]
    kernel("spaces.cu", "by_value")((1,), (1,), (map_, np.int8(1), y))
    assert y[0] == 9


@pytest.mark.parametrize("mode", [{"workers": 2}, {"race": True}])
def test_device_variables_are_the_module_s_and_all_blocks_(mode):
    """As on a device: kept from launch to launch, anew in each module, one for all blocks."""
    for _ in range(2):
        count = cudasim.Module(KERNELS / "spaces.cu").get_function("count")
        for first in (5, 13):
            y = np.zeros(8, np.uint32)
            count((8,), (32,), (y,), **mode)
            assert sorted(y) == list(range(first, first + 8))


def test_what_device_variables_hold():
    module = cudasim.Module(KERNELS / "spaces.cu")
    keep, y = module.get_function("keep"), np.zeros(3, np.int32)
    for value, before in ((7, 0), (8, 7)):
        keep((1,), (1,), (np.int32(value), y))
        assert y.tolist() == [before, 16, 1]
    held = {v.name: v.contents.view(np.int32).tolist() for v in module.variables}
    assert held["table"] == [1, 8, 3] and held["other"] == [8] and held["counter"] == [5]
    # After an error they are as before, like arguments, also where the runner died of it.
    for i, message in ((3, r"write to table\[3\]"), (-1, "wrote just before table")):
        with pytest.raises(cudasim.OutOfBoundsError, match=message):
            module.get_function("table_element")((1,), (1,), (np.int32(i),))
    assert {v.name: v.contents.view(np.int32).tolist() for v in module.variables} == held


@pytest.mark.parametrize(("order", "mode"), [(order, {}) for order in ORDERS] + [("fifo", {"race": True})])  # fmt: skip
def test_reads_just_past_an_argument(kernel, order, mode):
    """Five floats: 12 bytes lie between them and the next multiple of 16, where vector loads begin."""
    x, y = np.ones(5, np.int32), np.zeros(1, np.int32)
    function = kernel("spaces.cu", "is_positive", **mode)
    for i in (5, 6, 7):
        arguments = (x, np.int32(i), y)
        if order != "random" and not mode:
            function((1,), (1,), arguments, order=order)  # passes: one schedule sees it
            continue
        with pytest.raises(
            cudasim.OutOfBoundsError, match=rf"read of (x\[{i}\]|4 bytes)"
        ) as caught:
            function((1,), (1,), arguments, order=order, **mode)
        assert caught.value.line == line_of("spaces.cu", "y[0] = x[i] > 0")


@pytest.mark.parametrize(("name", "dtype", "orders"), [
    ("add_one", np.float32, ("fifo", "random", "lifo")),
    ("add_one_half", np.float16, ORDERS),
    ("add_one_double", np.float64, ("reverse", "random")),
])  # fmt: skip
def test_adding_past_an_argument_shows(kernel, name, dtype, orders):
    """What lies there is a NaN, but none that addition keeps."""
    x = np.zeros(5, dtype)
    for order in orders:
        with pytest.raises(cudasim.OutOfBoundsError, match=r"just behind x|read of x\[5\]"):
            kernel("spaces.cu", name)((1,), (1,), (x, np.int32(5)), order=order)
    before = np.zeros(9, dtype)[1:]  # its start is no multiple of 16
    for order in ("fifo", "lifo") if dtype != np.float64 else ("reverse", "random", "lifo"):
        with pytest.raises(cudasim.OutOfBoundsError, match=r"just before x|read of x\[-1\]"):
            kernel("spaces.cu", name)((1,), (1,), (before, np.int32(-1)), order=order)


def test_vector_loads_from_arrays_of_any_size_are_no_fault():
    """Guards without room give such arrays less alignment than a device: that is tried anew."""
    function = cudasim.Module(KERNELS / "spaces.cu").get_function("vectors")
    for order in ORDERS:
        for n in (7, 9):
            x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
            function((1,), (4,), (x, y, np.int32(n)), order=order)
            np.testing.assert_array_equal(y[: n // 4 * 4], x[: n // 4 * 4])


def test_a_source_without_kernels_says_so():
    """It used to list those of the module described before it."""
    cudasim.Module("fill.cu", code=FILL).get_function("fill")
    empty = cudasim.Module("empty.cu", code="__global__ void f() {}\n")
    with pytest.raises(cudasim.CudaSimError, match=r"empty\.cu: no kernel 'f'; there are none"):
        empty.get_function("f")
    assert empty.variables == ()


@pytest.mark.parametrize(("code", "message"), [
    ("\n__shared__ int a[4];\n", r"k\.cu:2: a __shared__ variable at file scope: declare it inside"),
    ('__device__ void f() {\n  asm volatile(\n"bar.sync 0;");\n}\n', r"k\.cu:2: inline PTX.*ptx\.cuh"),
    ('__device__ int f(int x) { asm("" : "+r"(x)); return y; }\n', "‘y’ was not declared|'y'"),
    ('__device__ const char* s = "<<<";\nint main() { fill<<<1, 2>>>(0, 1); }\n',
     r"k\.cu:2: a launch by <<< >>>: launch from Python.*ifndef CUDASIM"),
    ("#include <curand_kernel.h>\n", r"curand_kernel\.h: cuRAND is not here"),
    ("#include <cuda/barrier>\n", r"cuda/barrier: barriers of <cuda/barrier>.*__syncthreads"),
    ("#include <cuda_fp8.h>\n", r"cuda_fp8\.h: 8-bit.*decode"),
    ("""#include <cooperative_groups.h>
        __device__ void f(cudaTextureObject_t t) {}
        __device__ float g(float x) { return __half2float(__float2half(x)); }
        __device__ int h(int x) { return __viaddmax_s32(x, x, x); }
        __device__ void i() {
          cooperative_groups::this_grid().sync();
          cooperative_groups::coalesced_threads();
        }
     """, r"(?s)(?=.*grid\.sync\(\): blocks run one after another)(?=.*coalesced_threads\(\): which threads)"
          r"(?=.*cudaTextureObject_t: textures)(?=.*include <cuda_fp16\.h>)(?=.*__viaddmax_s32: DPX)"),
])  # fmt: skip
def test_what_is_not_there_is_named_with_what_to_do(code, message):
    with pytest.raises(cudasim.CompileError, match=message):
        cudasim.Module("k.cu", code=code + FILL)
