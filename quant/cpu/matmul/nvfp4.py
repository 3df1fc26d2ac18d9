"""Products with NVFP4: 4 x 16 weights of four bits, looked up in a table, each 16 with a scale of eight."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from ..exponents import SMALL_FLOATS
from . import lanes
from .bits import NIBBLES, byte
from .layouts import layout_of

FORMAT = block_format("NVFP4")
LAYOUT = layout_of(FORMAT, n_segments=4, shift=-FORMAT.codes[0])
D, QS = FORMAT.offsets("d", "qs")
_VALUES = np.array([value + LAYOUT.shift for value in FORMAT.values] * 4).astype(np.uint8)
_SCALES = SMALL_FLOATS.view(np.int32)


@kernel(inline=True)
def _looked_up(q):
    return lanes.as_ints(simd.bytes16(lanes.load_bytes(_VALUES), lanes.as_bytes(q & NIBBLES)))


@kernel(inline=True)
def _put_16(put, end, state, run, first, second, d):
    """The low nibbles of eight bytes, then their high ones; `d`: the four scales."""
    offset = 256 * run
    state = put(state, offset, _looked_up(first))
    state = put(state, offset + 64, _looked_up(second))
    state = put(state, offset + 128, _looked_up(first >> 4))
    state = put(state, offset + 192, _looked_up(second >> 4))
    return end(state, run, simd.as_floats(simd.lookup_far(_SCALES, byte(d, run))))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d[4], qs[32], eight bytes a run, each nibble an index into 16 values."""
    d = lanes.column_i32(rows, at + D)
    q = lanes.columns_4(rows, at + QS)
    state = _put_16(to.put, to.end, state, 0, q[0], q[1], d)
    state = _put_16(to.put, to.end, state, 1, q[2], q[3], d)
    q = lanes.columns_4(rows, at + QS + 16)
    state = _put_16(to.put, to.end, state, 2, q[0], q[1], d)
    return _put_16(to.put, to.end, state, 3, q[2], q[3], d)
