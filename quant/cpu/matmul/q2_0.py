"""Products with Q2_0: 64 weights of two bits, less one, and a scale."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import TWO_BITS, byte, half_column
from .layouts import layout_of

FORMAT = block_format("Q2_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def _put_16(put, state, offset, q):
    for i in range(4):
        four = byte(q, i)
        four = (four | four << 6 | four << 12 | four << 18) & TWO_BITS
        state = put(state, offset + 64 * i, four)
    return state


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[16] (four weights a byte, the lowest bits first)."""
    q = lanes.columns_4(rows, at + QS)
    state = _put_16(to.put, state, 0, q[0])
    state = _put_16(to.put, state, 256, q[1])
    state = _put_16(to.put, state, 512, q[2])
    state = _put_16(to.put, state, 768, q[3])
    return to.end(state, 0, half_column(rows, at + D))
