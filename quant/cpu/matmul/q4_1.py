"""Products with Q4_1: a scale, a minimum and 32 weights of four bits."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import low_half, put_high_nibbles, put_low_nibbles
from .layouts import layout_of

FORMAT = block_format("Q4_1")
LAYOUT = layout_of(FORMAT, n_segments=1, n_min_segments=1)
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, m, qs[16] (low nibbles, then high)."""
    d = lanes.column_i32(rows, at + D)  # and m
    q = lanes.columns_4(rows, at + QS)
    state = put_low_nibbles(to.put, state, 0, q)
    state = put_high_nibbles(to.put, state, 256, q)
    state = to.end(state, 0, low_half(d))
    return to.end_minimum(state, low_half(d >> 16))
