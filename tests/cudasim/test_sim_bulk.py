"""Bulk copies of tiles and the barriers in shared memory that they complete on (bulk.cuh).

The same kernels and checks run on a GPU of compute capability 9.0 (marker gpu); what the simulator finds wrong
with a use of them, on the simulator alone.
"""

import re

import numpy as np
import pytest
from sim_kernels import ORDERS

from lowlevel import cudasim
from lowlevel.gpu.tensor_map import TensorMap


def swizzled(lines):
    """(rows, 64) values as they lie in shared memory: chunks of a line exchanged by its number."""
    chunks = lines.reshape(len(lines), 8, 8)
    order = np.arange(8) ^ (np.arange(len(lines)) % 8)[:, None]
    return np.take_along_axis(chunks, order[..., None], 1).reshape(lines.shape)


@pytest.mark.parametrize(
    "rows, column, row, head",
    [(8, 0, 0, 0), (64, 64, 5, 2), (16, 128, 0, 1), (8, 64, 96, 0), (8, -8, -3, 1), (24, 0, 0, 3)],
)
def test_box(anywhere, rng, rows, column, row, head):
    """Whole boxes, and ones that reach over an end of each axis; three heads of rows that lie apart."""
    memory = rng.integers(1, 1 << 16, (3, 100, 160)).astype(np.uint16)
    x = memory[:, :, :136]
    padded = np.zeros((5, 300, 400), np.uint16)
    padded[1:4, 100:200, 100:236] = x
    expected = padded[head + 1, 100 + row :, 100 + column :][:rows, :64]
    image = np.zeros((rows, 64), np.uint16)
    kernel = anywhere("bulk.cu", "bulk_box", architecture="90a")
    kernel(
        (1,), (64,),
        (TensorMap(x, rows), image.view(np.uint32), *map(np.int32, (rows, column, row, head))),
        shared_mem=rows * 128,
    )  # fmt: skip
    np.testing.assert_array_equal(image, swizzled(expected))


def run_sums(kernel, rng):
    """Whether ``bulk_sums`` is right."""
    x = rng.integers(0, 1000, (1, 40, 64)).astype(np.uint16)
    sums = np.zeros(64, np.int32)
    kernel((1,), (96,), (TensorMap(x, 8), sums, np.int32(5)), shared_mem=2 * 8 * 128)
    return np.array_equal(sums, x[0].sum(0))


def test_sums(anywhere, rng):
    assert run_sums(anywhere("bulk.cu", "bulk_sums", architecture="90a"), rng)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checks", [{}, {"race": True}, {"ub": True}], ids=["plain", "race", "ub"])
def test_sums_checked(kernel, rng, checks, order):
    with cudasim.settings(order=order, **checks):
        assert run_sums(kernel("bulk.cu", "bulk_sums", **checks), rng)


def found_in(kernel, rng, bug, order, **checks):
    """What shows a planted bug: an error's message, "wrong" or None."""
    with cudasim.settings(order=order, **checks):
        try:
            return (
                None
                if run_sums(kernel("bulk.cu", "bulk_sums", f"BUG_{bug}", **checks), rng)
                else "wrong"
            )
        except cudasim.KernelError as error:
            return str(error)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "bug, error",
    [
        ("WAIT", ""),  # what is read then is poison
        ("PHASE", ""),
        ("MORE_BYTES", "lacks 0 of 1 arrivals and 128 of 1152 bytes"),
        ("FEWER_BYTES", "copies of 1024 bytes to a phase of the barrier .* that was told of 896"),
        ("NO_BYTES", ""),
        ("ARRIVALS", ""),
        ("MADE", "a barrier that nobody has made"),
    ],
)
def test_what_is_wrong_shows(kernel, rng, order, bug, error):
    assert re.search(error, found_in(kernel, rng, bug, order))


@pytest.mark.parametrize("bug", ["WAIT", "PHASE", "FREE", "SYNC", "PROXY"])
def test_races(kernel, rng, bug):
    found = found_in(kernel, rng, bug, "fifo", race=True)
    assert "race" in found or "wrong" not in found
    assert bug != "PROXY" or "without fence.proxy.async" in found


def test_a_place_that_is_not_free(kernel, rng):
    """Without race mode: seen in some order of threads."""
    assert any(found_in(kernel, rng, "FREE", order) for order in ORDERS)


def test_arrays_that_no_map_describes():
    x = np.zeros((2, 40, 72), np.uint16)
    for array, rows in (
        (x[0], 8),
        (x.view(np.uint8), 8),
        (x[:, :, 1:], 8),
        (x[:, ::-1], 8),
        (x, 300),
        (x[:, :, ::2], 8),
    ):
        with pytest.raises(cudasim.ArgumentError, match="tensor map: expected"):
            cudasim.TensorMap(array, rows)


# ---------------------------------------------------------------- bytes as they lie


def run_bytes(kernel, rng, n_bytes=96, start=32, to=16):
    """Whether ``bulk_bytes`` is right."""
    source = rng.integers(0, 1 << 32, 64, np.uint32)
    target = np.zeros(n_bytes // 4, np.uint32)
    kernel((1,), (32,), (source, target, *map(np.int32, (n_bytes, start, to))), shared_mem=256)
    return np.array_equal(target, source[start // 4 :][: n_bytes // 4])


def test_bytes(anywhere, rng):
    assert run_bytes(anywhere("bulk_bytes.cu", "bulk_bytes", architecture="90a"), rng)


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_without_a_wait(kernel, rng, order):
    with cudasim.settings(order=order):
        assert not run_bytes(kernel("bulk_bytes.cu", "bulk_bytes", "BUG_WAIT"), rng)


def test_bytes_over_a_write(kernel, rng):
    with cudasim.settings(race=True):
        assert run_bytes(kernel("bulk_bytes.cu", "bulk_bytes", race=True), rng)
        with pytest.raises(cudasim.KernelError, match="without fence"):
            run_bytes(kernel("bulk_bytes.cu", "bulk_bytes", "BUG_PROXY", race=True), rng)


@pytest.mark.parametrize("wrong", [dict(n_bytes=88), dict(start=8), dict(to=8)], ids=str)
def test_bytes_not_in_sixteens(kernel, rng, wrong):
    with pytest.raises(cudasim.MisalignedError, match="multiples of 16"):
        run_bytes(kernel("bulk_bytes.cu", "bulk_bytes"), rng, **wrong)
