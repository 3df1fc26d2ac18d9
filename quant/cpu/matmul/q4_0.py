"""Products with Q4_0: a scale and 32 weights of four bits, less eight."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column, put_high_nibbles, put_low_nibbles
from .layouts import layout_of

FORMAT = block_format("Q4_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[16] (low nibbles, then high)."""
    d = half_column(rows, at + D)
    q = lanes.columns_4(rows, at + QS)
    state = put_low_nibbles(to.put, state, 0, q)
    state = put_high_nibbles(to.put, state, 256, q)
    return to.end(state, 0, d)
