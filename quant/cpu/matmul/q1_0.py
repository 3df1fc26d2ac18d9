"""Products with Q1_0: 128 weights of one bit, a scale or its negative."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte_masks, half_column
from .layouts import layout_of

FORMAT = block_format("Q1_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
D, QS = FORMAT.offsets("d", "qs")
_TWOS = 0x02020202


@kernel(inline=True)
def _put_32(put, state, offset, bits):
    for i in range(8):
        state = put(state, offset + 64 * i, byte_masks(bits >> (4 * i)) & _TWOS)
    return state


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[16] (the lowest bit of a byte first)."""
    q = lanes.columns_4(rows, at + QS)
    state = _put_32(to.put, state, 0, q[0])
    state = _put_32(to.put, state, 512, q[1])
    state = _put_32(to.put, state, 1024, q[2])
    state = _put_32(to.put, state, 1536, q[3])
    return to.end(state, 0, half_column(rows, at + D))
