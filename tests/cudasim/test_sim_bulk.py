"""Bulk copies of tiles and the barriers in shared memory that they complete on (bulk.cuh).

The same kernels and checks run on a GPU of compute capability 9.0 (marker gpu); what the simulator finds wrong
with a use of them, on the simulator alone.
"""

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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "bug, error",
    [
        ("WAIT", None),  # what is read then is poison
        ("PHASE", "more arrivals|None"),
        ("FREE", "more arrivals|None"),
        ("MORE_BYTES", r"lacks 0 of 1 arrivals and 128 of 1152 bytes"),
        ("FEWER_BYTES", "copies of 1024 bytes to a phase of the barrier .* told of 896"),
        ("NO_BYTES", "copies of 1024 bytes to a phase of the barrier .* told of 0|None"),
        ("ARRIVALS", "copies of 1024 bytes|more arrivals|None"),
        ("MADE", "a barrier that nobody has made"),
        ("PROXY", "without fence.proxy.async"),
    ],
)
def test_what_is_wrong_shows(kernel, rng, order, bug, error):
    with cudasim.settings(order=order):
        try:
            assert not run_sums(kernel("bulk.cu", "bulk_sums", f"BUG_{bug}"), rng)
            found = "None"
        except cudasim.KernelError as reason:
            found = str(reason)
    assert any(part in found or __import__("re").search(part, found) for part in str(error).split("|"))


@pytest.mark.parametrize("bug", ["WAIT", "PHASE", "FREE", "SYNC"])
def test_races(kernel, rng, bug):
    with cudasim.settings(race=True), pytest.raises(cudasim.KernelError):
        run_sums(kernel("bulk.cu", "bulk_sums", f"BUG_{bug}", race=True), rng)


def test_arrays_that_no_map_describes():
    x = np.zeros((2, 40, 72), np.uint16)
    for array, rows in ((x[0], 8), (x.view(np.uint8), 8), (x[:, :, 1:], 8), (x[:, ::-1], 8), (x, 300), (x[:, :, ::2], 8)):
        with pytest.raises(cudasim.ArgumentError, match="tensor map: expected"):
            cudasim.TensorMap(array, rows)
