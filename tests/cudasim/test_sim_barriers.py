"""Barriers and warp collectives that not all threads reach, and limits of a launch."""

import numpy as np
import pytest
from sim_kernels import ORDERS, line_of

from lowlevel import cudasim


def _sum(function, **changes):
    x = np.arange(1, 97, dtype=np.int32)
    y = np.zeros(4, np.int32)
    function((1,), (96,), (x, y), **changes)
    assert y.tolist() == [x.sum(), (x & 1).sum(), 0, 1]


def test_correct_kernels(anywhere):
    _sum(anywhere("barriers.cu", "sum"))
    y = np.zeros(70, np.int32)
    anywhere("barriers.cu", "wait_for_flag")((1,), (70,), (y,))
    assert (y == 7).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("race", [False, True])
def test_correct_kernel_passes(kernel, order, race):
    _sum(kernel("barriers.cu", "sum"), order=order, race=race)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("bug", "message"), [
    ("BUG_SOME", "divergent __syncthreads|deadlock|of the block returns"),
    ("BUG_RETURN", "returns|have returned|shuffle reads lane 8"),
    ("BUG_TWO", "divergent __syncthreads"),
    ("BUG_LANES", "deadlock|different collectives|which does not take part"),
    ("BUG_MASK", "mask 0000ffff, which leaves it out"),
    ("BUG_GONE", "shuffle reads lane 1, which does not take part|returns|have returned"),
    ("BUG_COUNT", "96 threads expected here|64 threads expected here|deadlock"),
])  # fmt: skip
def test_planted_bugs(kernel, bug, message, order):
    with pytest.raises(cudasim.BarrierError, match=message) as caught:
        _sum(kernel("barriers.cu", "sum", bug), order=order)
    assert caught.value.file.endswith("barriers.cu") and caught.value.line


def test_early_return_is_allowed_where_asked_for(kernel):
    # The device allows it since Volta; thread 40 and its number are missing from the sum.
    x, y = np.ones(96, np.int32), np.zeros(4, np.int32)
    with pytest.raises(cudasim.BarrierError, match="shuffle reads lane"):
        kernel("barriers.cu", "sum", "BUG_RETURN")((1,), (96,), (x, y), strict=False)


def test_launch_bounds_and_static_shared_memory(kernel):
    with pytest.raises(cudasim.KernelLaunchError, match=r"96 threads a block.*allows 64"):
        _sum(kernel("barriers.cu", "sum", "BUG_LAUNCH_BOUNDS"))
    with pytest.raises(cudasim.KernelLaunchError, match="static shared memory; CUDA allows 49152"):
        _sum(kernel("barriers.cu", "sum", "BUG_LARGE"))


@pytest.mark.parametrize("order", ORDERS)
def test_spinning_on_an_atomic_lets_the_others_run(kernel, order):
    y = np.zeros(70, np.int32)
    kernel("barriers.cu", "wait_for_flag")((1,), (70,), (y,), order=order, seed=3)
    assert (y == 7).all()


def test_spinning_for_nothing_is_given_up(kernel):
    with pytest.raises(cudasim.HangError) as caught:
        kernel("barriers.cu", "wait_for_flag", "BUG_NO_FLAG")(
            (1,), (70,), (np.zeros(70, np.int32),), hang_seconds=1
        )
    assert caught.value.line == line_of("barriers.cu", "while (atomicAdd(&flag, 0) == 0)")
