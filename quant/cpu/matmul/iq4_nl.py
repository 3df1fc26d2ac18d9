"""Products with IQ4_NL: a scale and 32 weights of four bits, looked up in a table."""

import numpy as np

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column, put_looked_up
from .layouts import layout_of

FORMAT = block_format("IQ4_NL")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=128)
D, QS = FORMAT.offsets("d", "qs")
_VALUES = np.array([value + LAYOUT.shift for value in FORMAT.values] * 4).astype(np.uint8)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[16] (low nibbles, then high), each an index into 16 values."""
    table = lanes.load_bytes(_VALUES)
    d = half_column(rows, at + D)
    q = lanes.columns_4(rows, at + QS)
    state = put_looked_up(to.put, state, 0, table, q)
    return to.end(state, 0, d)
