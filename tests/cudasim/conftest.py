"""Kernels of this folder, compiled for the simulator with planted bugs or without."""

import functools
import os

import numpy as np
import pytest
from sim_kernels import KERNELS

from lowlevel import cudasim


@functools.cache
def _module(file, defines, race, ub):
    with cudasim.settings(race=race, ub=ub):
        return cudasim.Module(KERNELS / file, options=[f"-D{define}" for define in defines])


@pytest.fixture
def kernel():
    """``kernel(file, name, *defines)``: a function of tests/cudasim/kernels."""

    def get(file, name, *defines, race=False, ub=False):
        return _module(file, defines, race, ub).get_function(name)

    return get


class _OnGpu:
    """A CuPy kernel behind the call of a simulator kernel; what only the simulator has is dropped."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __call__(self, grid, block, arguments, *, shared_mem=0, **_):
        import cupy

        moved = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        null = np.uintp(0)
        self._kernel(
            grid, block, tuple(null if a is None else a for a in moved), shared_mem=shared_mem
        )
        for host, device in zip(arguments, moved, strict=True):
            if isinstance(host, np.ndarray) and host.flags.writeable:
                host[...] = cupy.asnumpy(device)


@pytest.fixture(params=["cudasim", pytest.param("gpu", marks=pytest.mark.gpu)])
def anywhere(request, kernel):
    """As `kernel`, on the simulator and on a GPU: what the tests expect must hold on both."""
    if request.param == "cudasim":
        return kernel
    cupy = pytest.importorskip("cupy")
    include = KERNELS.parents[2] / "lowlevel" / "cuda" / "include"
    toolkit = os.environ.get("CUDA_PATH", "/usr/local/cuda")
    options = (f"-I{include}", f"-I{toolkit}/include", "-std=c++17")

    def get(file, name):
        module = cupy.RawModule(code=(KERNELS / file).read_text(), options=options)
        return _OnGpu(module.get_function(name))

    return get


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)
