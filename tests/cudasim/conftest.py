"""Kernels of this folder, compiled for the simulator with planted bugs or without."""

import functools
import os

import numpy as np
import pytest
from sim_kernels import KERNELS

from lowlevel import cudasim
from lowlevel.cuda import cupy_api
from lowlevel.gpu import tensor_map
from lowlevel.gpu.tensor_map import TensorMap


@functools.cache
def _module(file, defines, race, ub):
    with cudasim.settings(race=race, ub=ub):
        return cudasim.Module(KERNELS / file, options=[f"-D{define}" for define in defines])


@pytest.fixture
def kernel():
    """``kernel(file, name, *defines)``: a function of tests/cudasim/kernels."""

    def get(file, name, *defines, race=False, ub=False):
        return _Simulated(_module(file, defines, race, ub).get_function(name))

    return get


class _Simulated:
    """A kernel of the simulator; descriptions of arrays become its own."""

    def __init__(self, kernel):
        object.__setattr__(self, "_kernel", kernel)

    def __setattr__(self, name, value):
        setattr(self._kernel, name, value)

    def __call__(self, grid, block, arguments, **options):
        maps = [cudasim.TensorMap(*a) if isinstance(a, TensorMap) else a for a in arguments]
        self._kernel(grid, block, tuple(maps), **options)

    def __getattr__(self, name):
        return getattr(self._kernel, name)


class _OnGpu:
    """A CuPy kernel behind the call of a simulator kernel; what only the simulator has is dropped."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __call__(self, grid, block, arguments, *, shared_mem=0, **_):
        import cupy

        kept = []
        arguments = [_encoded(a, kept) if isinstance(a, TensorMap) else a for a in arguments]
        # An array without axes is a structure, passed by value.
        arrays = [isinstance(a, np.ndarray) and a.ndim > 0 for a in arguments]
        moved = [
            cupy.asarray(a) if to_gpu else a for a, to_gpu in zip(arguments, arrays, strict=True)
        ]
        null = np.uintp(0)
        self._kernel(
            grid, block, tuple(null if a is None else a for a in moved), shared_mem=shared_mem
        )
        for host, device, is_array in zip(arguments, moved, arrays, strict=True):
            if is_array and host.flags.writeable:
                host[...] = cupy.asnumpy(device)


def _encoded(described, keep):
    """The driver's description of a copy on the GPU, laid out as the array is; `keep` holds the copy."""
    import cupy

    array = described.array
    whole = array if array.base is None else array.base
    copy = cupy.asarray(whole)
    keep.append(copy)
    start = copy.data.ptr + array.ctypes.data - whole.ctypes.data
    return tensor_map.encode(start, array.shape, array.strides, described.rows)


@pytest.fixture(params=["cudasim", pytest.param("gpu", marks=pytest.mark.gpu)])
def anywhere(request, kernel):
    """As `kernel`, on the simulator and on a GPU: what the tests expect must hold on both."""
    if request.param == "cudasim":
        return lambda file, name, architecture=None: kernel(file, name)
    cupy = pytest.importorskip("cupy")
    include = KERNELS.parents[2] / "lowlevel" / "gpu" / "include"
    toolkit = os.environ.get("CUDA_PATH", "/usr/local/cuda")
    toolkit_includes = (f"-I{toolkit}/include", f"-I{toolkit}/include/cccl")
    options = (f"-I{include}", *toolkit_includes, "-std=c++17")

    def get(file, name, architecture=None):
        text = (KERNELS / file).read_text()
        if architecture is None:
            module = cupy.RawModule(code=text, options=options)
        elif architecture != cupy_api.architecture(0):
            pytest.skip(f"needs the instructions of sm_{architecture}")
        else:
            module = cupy_api.compile_module(text, file, options, (name,), architecture)
        return _OnGpu(module.get_function(name))

    return get


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)
