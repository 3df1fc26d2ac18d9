"""Products with IQ4_NL: a scale and 32 weights of four bits, looked up in a table."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column, put_looked_up
from .layouts import layout_of

FORMAT = block_format("IQ4_NL")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=128)
D, QS = FORMAT.offsets("d", "qs")
_VALUES = np.array([value + LAYOUT.shift for value in FORMAT.values] * 4, np.uint8)


@kernel(inline=True)
def unpack(put, put_scaled, end, state, rows, at):
    """d, qs[16] (low nibbles, then high), each an index into 16 values."""
    table = simd.load_u8x64(_VALUES, 0)
    d = half_column(rows, at + D)
    q = lanes.columns_4(rows, at + QS)
    state = put_looked_up(put, state, 0, table, q)
    return end(state, 0, d)
