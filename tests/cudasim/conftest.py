"""Kernels of this folder, compiled for the simulator with planted bugs or without."""

import functools
import pathlib

import numpy as np
import pytest

from lowlevel import cudasim

KERNELS = pathlib.Path(__file__).parent / "kernels"
ORDERS = ("fifo", "reverse", "random", "lifo")


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


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def line_of(file, text):
    """Number of the only line of a kernel file that holds `text`."""
    lines = (KERNELS / file).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    assert len(found) == 1, (file, text, found)
    return found[0]
