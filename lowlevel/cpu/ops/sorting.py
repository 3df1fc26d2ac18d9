"""Choices of experts in the order of experts, on the CPU: a counting sort by one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from lowlevel.ops.routing import MAX_EXPERTS

from . import frame
from .elementwise import read_i32

if TYPE_CHECKING:
    from lowlevel.devices import Device


# The first rows of experts stand behind the launch's integers.
_N_INTEGERS, _N_EXPERTS = 14, MAX_EXPERTS


@kernel(inline=True)
def _choice(integers, token, used):
    """The expert, and the address of its weight."""
    expert = read_i32(integers[0] + token * integers[1] + used * integers[2])
    return np.int64(expert), integers[3] + token * integers[4] + used * integers[5]


@kernel(inline=True)
def _sort_choices(integers, floats, first, stop):
    n_tokens, n_used, places = integers[12], integers[13], _N_INTEGERS
    for e in range(_N_EXPERTS + 1):
        integers[places + e] = 0
    for token in range(n_tokens):
        for used in range(n_used):
            expert, _ = _choice(integers, token, used)
            integers[places + expert + 1] += 1
    for e in range(_N_EXPERTS):
        integers[places + e + 1] += integers[places + e]
    for token in range(n_tokens):
        for used in range(n_used):
            expert, weight = _choice(integers, token, used)
            row = integers[places + expert]
            integers[places + expert] = row + 1
            simd.write_at(integers[6] + row * integers[7], np.int32(token))
            simd.write_at(integers[8] + row * integers[9], np.int32(expert))
            simd.write_at(integers[10] + row * integers[11], simd.read_f32(weight, 0))


_sort = frame.rows_kernel(_sort_choices)


def sort_by_expert(
    device: Device,
    ids: np.ndarray,
    weights: np.ndarray,
    tokens: np.ndarray,
    experts: np.ndarray,
    row_weights: np.ndarray,
) -> None:
    """See `lowlevel.ops.sort_by_expert`; ids are at least 0 and below `MAX_EXPERTS`."""
    integers = [frame.address(ids), *ids.strides, frame.address(weights), *weights.strides]
    for array in (tokens, experts, row_weights):
        integers += frame.address(array), array.strides[0]
    integers += ids.shape
    assert len(integers) == _N_INTEGERS
    places = [0] * (_N_EXPERTS + 1)
    frame.run(_sort, integers + places, (0,), min(1, ids.size), 24 * ids.size, 1)
