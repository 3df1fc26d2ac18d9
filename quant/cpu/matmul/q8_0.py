"""Products with Q8_0: 32 signed bytes and a scale."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import TOP_BITS, half_column
from .layouts import layout_of

FORMAT = block_format("Q8_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=128)
D, QS = FORMAT.offsets("d", "qs")


_FLIPPED = TOP_BITS if LAYOUT.shift else 0


@kernel(inline=True)
def _put_signed(put, state, offset, q):
    state = put(state, offset, q[0] ^ _FLIPPED)
    state = put(state, offset + 64, q[1] ^ _FLIPPED)
    state = put(state, offset + 128, q[2] ^ _FLIPPED)
    return put(state, offset + 192, q[3] ^ _FLIPPED)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[32] signed."""
    d = half_column(rows, at + D)
    state = _put_signed(to.put, state, 0, lanes.columns_4(rows, at + QS))
    state = _put_signed(to.put, state, 256, lanes.columns_4(rows, at + QS + 16))
    return to.end(state, 0, d)
