"""Which arrays the copy engine can be told of (lowlevel/gpu/tensor_map.py)."""

import numpy as np
import pytest

from lowlevel.gpu.tensor_map import describable, whole_strides

SHAPE = 3, 40, 192  # heads, rows, columns
WHOLE = 40 * 384, 384, 2


@pytest.mark.parametrize(
    "address, shape, strides, expected",
    [
        (0, SHAPE, WHOLE, True),
        (64, SHAPE, (384, 3 * 384, 2), True),  # heads within a row
        (0, (1, 40, 192), (0, 384, 2), True),  # an axis of one: its stride does not count
        (0, (3, 1, 192), (400, -7, 2), True),
        (8, SHAPE, WHOLE, False),
        (0, SHAPE, (40 * 384, 382, 2), False),
        (0, SHAPE, (0, 384, 2), False),  # the same for all heads
        (0, SHAPE, (40 * 384, -384, 2), False),
        (0, SHAPE, (40 * 384, 384, 4), False),
        (0, (3, 0, 192), WHOLE, False),
    ],
)
def test_describable(address, shape, strides, expected):
    assert describable(address, shape, strides) is expected


def test_strides_of_axes_of_one_element():
    assert whole_strides(SHAPE, WHOLE) == (384, 40 * 384)
    assert whole_strides((1, 1, 100), (5, 7, 2)) == (208, 208)  # multiples of 16 bytes
    assert whole_strides((2, 1, 100), (416, 7, 2)) == (208, 416)
    x = np.zeros((2, 5, 64), np.uint16)[:, ::2]
    assert whole_strides(x.shape, x.strides) == (256, 640)
