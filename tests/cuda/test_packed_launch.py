"""What a packed launch hands to the driver, without a GPU; with one, tests of every kernel go through it."""

import ctypes
import threading

import numpy as np
import pytest

from lowlevel.cuda.packed_launch import PackedLaunch
from lowlevel.gpu.kernel_device import parsed
from lowlevel.gpu.tensor_map import TensorMap


class Data:
    def __init__(self, ptr, device_id):
        self.ptr, self.device_id = ptr, device_id


class Array:
    """What is looked at of CuPy's."""

    def __init__(self, ptr, dtype, device_id=1):
        self.data, self.dtype = Data(ptr, device_id), np.dtype(dtype)


class OfSubclass(Array):
    pass


PARAMETERS = ("const u2*", "V*", "f4*", "i4", "i8", "u4", "f4", "V24", "map")
STRUCTURE = np.array((1, 2, 3), [("a", "<i8"), ("b", "<i8"), ("c", "<i8")])
MAP = np.arange(128, dtype=np.uint8)
GOOD = (
    Array(1000, "f2"), Array(2000, "i1"), None, -5, 2**40, 2**32 - 1, 0.5, STRUCTURE,
    TensorMap(Array(3000, "f2"), 64),
)  # fmt: skip


def packed():
    return PackedLaunch(parsed(PARAMETERS), Array, 1, lambda described: MAP)


def read(places):
    """The bytes that the driver would see, an argument each."""
    sizes = (8, 8, 8, 4, 8, 4, 4, 24, 128)
    addresses = (ctypes.c_uint64 * len(sizes)).from_address(places)
    return [ctypes.string_at(at, n) for at, n in zip(addresses, sizes, strict=True)]


def test_every_kind_of_argument():
    seen, launch = [], packed()
    assert launch(GOOD, lambda places: seen.append(read(places)))
    expected = [np.uint64(1000), np.uint64(2000), np.uint64(0), np.int32(-5), np.int64(2**40)]
    expected += [np.uint32(2**32 - 1), np.float32(0.5), STRUCTURE, MAP]
    assert seen == [[each.tobytes() for each in expected]]


@pytest.mark.parametrize(
    "index, argument",
    [
        (0, np.zeros(3, np.uint16)),  # of the host
        (0, Array(1000, "f2", device_id=0)),  # of another GPU
        (0, OfSubclass(1000, "f2")),
        (0, Array(1000, "i2")),
        (2, Array(1000, "f8")),
        (3, 2**31),
        (3, 1.0),
        (3, True),
        (5, -1),
        (6, 1e39),  # infinity, says the careful way
        (6, "1"),
        (7, np.zeros((), [("a", "<i8")])),
        (7, np.zeros(1, "V24")),
        (8, Array(3000, "f2")),
        (8, TensorMap(np.zeros(3), 64)),
    ],
)
def test_the_unusual_is_left_to_others(index, argument):
    arguments = (*GOOD[:index], argument, *GOOD[index + 1 :])
    assert not packed()(arguments, lambda places: pytest.fail("launched"))
    assert not packed()(GOOD[:-1], lambda places: pytest.fail("launched"))


def test_threads_do_not_share_a_place():
    """While one launches, another packs."""
    launch, seen = packed(), []

    def inner(places):
        seen.append(places)

    def outer(places):
        before = read(places)
        other = (*GOOD[:3], 7, *GOOD[4:])
        thread = threading.Thread(target=lambda: launch(other, inner))
        thread.start()
        thread.join()
        assert read(places) == before
        seen.append(places)

    launch(GOOD, outer)
    assert len(set(seen)) == 2
    launch(GOOD, inner)
    assert len(set(seen)) == 2  # places are used again
