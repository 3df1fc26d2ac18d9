"""Products with TQ2_0: 256 weights of two bits, less one, and a scale."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import TWO_BITS, half_column
from .layouts import layout_of

FORMAT = block_format("TQ2_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=-FORMAT.codes[0])
QS, D = FORMAT.offsets("qs", "d")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """qs[64] (two bits at one place in 32 bytes: 32 consecutive weights), d."""
    d = half_column(rows, at + D)
    for part in range(4):
        q, offset = (
            lanes.columns_4(rows, at + QS + 16 * part),
            2048 * (part // 2) + 256 * (part % 2),
        )
        for pair in range(4):
            state = to.put(state, offset + 512 * pair, (q[0] >> (2 * pair)) & TWO_BITS)
            state = to.put(state, offset + 512 * pair + 64, (q[1] >> (2 * pair)) & TWO_BITS)
            state = to.put(state, offset + 512 * pair + 128, (q[2] >> (2 * pair)) & TWO_BITS)
            state = to.put(state, offset + 512 * pair + 192, (q[3] >> (2 * pair)) & TWO_BITS)
    return to.end(state, 0, d)
