"""Products with Q5_1: a scale, a minimum and 32 weights of five bits."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import low_half, put_five_bits
from .layouts import layout_of

FORMAT = block_format("Q5_1")
LAYOUT = layout_of(FORMAT, n_segments=1, n_min_segments=1)
D, QH, QS = FORMAT.offsets("d", "qh", "qs")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, m, qh (the fifth bits, the first weight's lowest), qs[16] (low nibbles, then high)."""
    d, high = lanes.column_i32(rows, at + D), lanes.column_i32(rows, at + QH)  # d: and m
    state = put_five_bits(to.put, state, lanes.columns_4(rows, at + QS), high)
    state = to.end(state, 0, low_half(d))
    return to.end_minimum(state, low_half(d >> 16))
