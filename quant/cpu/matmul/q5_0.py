"""Products with Q5_0: a scale and 32 weights of five bits, less sixteen."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column, put_five_bits
from .layouts import layout_of

FORMAT = block_format("Q5_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
D, QH, QS = FORMAT.offsets("d", "qh", "qs")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qh (the fifth bits, the first weight's lowest), qs[16] (low nibbles, then high)."""
    d, high = half_column(rows, at + D), lanes.column_i32(rows, at + QH)
    state = put_five_bits(to.put, state, lanes.columns_4(rows, at + QS), high)
    return to.end(state, 0, d)
