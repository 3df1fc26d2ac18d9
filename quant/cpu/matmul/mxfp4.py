"""Products with MXFP4: a power of two and 32 weights of four bits, looked up in a table."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from ..exponents import half_power_of_two
from . import lanes
from .bits import put_looked_up
from .layouts import layout_of

FORMAT = block_format("MXFP4")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
E, QS = FORMAT.offsets("e", "qs")
_VALUES = np.array([value + LAYOUT.shift for value in FORMAT.values] * 4).astype(np.uint8)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """e, qs[16] (low nibbles, then high), each an index into 16 values."""
    table = lanes.load_bytes(_VALUES)
    e = simd.widen(lanes.column_u16(rows, at + E)) & 255  # a byte of qs behind it
    state = put_looked_up(to.put, state, 0, table, lanes.columns_4(rows, at + QS))
    return to.end(state, 0, half_power_of_two(e))
