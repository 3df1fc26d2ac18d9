"""Products with IQ4_XS: 8 x 32 weights of four bits, looked up in a table, each 32 with a scale of six bits."""

import numpy as np

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import low_half, put_looked_up
from .layouts import layout_of

FORMAT = block_format("IQ4_XS")
LAYOUT = layout_of(FORMAT, n_segments=8, shift=128, n_factors=8)
D, QS = FORMAT.offsets("d", "qs")
_VALUES = np.array([value + LAYOUT.shift for value in FORMAT.values] * 4).astype(np.uint8)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, scales_h (the high two bits of each scale), scales_l[4] (the low four), qs[128] as eight of IQ4_NL."""
    table = lanes.load_bytes(_VALUES)
    head = lanes.columns_4(rows, at + D)  # and the scales
    d, high, low = low_half(head[0]), head[0] >> 16, head[1]
    for sub_block in range(8):
        q = lanes.columns_4(rows, at + QS + 16 * sub_block)
        state = put_looked_up(to.put, state, 512 * sub_block, table, q)
        scale = ((low & 15) | ((high & 3) << 4)) - 32
        state = to.end_scaled(state, sub_block, d, scale)
        low, high = low >> 4, high >> 2
    return to.finish(state, d)
