"""Products with IQ1_S: 8 x 32 weights of -1, 0, 1 and a shift of an eighth, each 32 with a scale, each eight an entry."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, half_column
from .grid_words import odd_multiple, put_eighths, words
from .layouts import layout_of

FORMAT = block_format("IQ1_S")
LAYOUT = layout_of(FORMAT, n_segments=8, shift=16)
D, QS, QH = FORMAT.offsets("d", "qs", "qh")
_GRID = words(FORMAT.grid, 1)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[32] (numbers of entries), qh[8] (of four entries the numbers' high bits, a scale, the shift's sign)."""
    d = half_column(rows, at + D) * 0.125
    for sub_block in range(8):
        q, offset = lanes.column_i32(rows, at + QS + 4 * sub_block), 512 * sub_block
        rest = simd.widen(lanes.column_u16(rows, at + QH + 2 * sub_block))
        minus = rest >> 15
        number = byte(q, 0) | (rest & 7) << 8
        state = put_eighths(to.put, state, offset, _GRID, number, minus)
        number = byte(q, 1) | ((rest >> 3) & 7) << 8
        state = put_eighths(to.put, state, offset + 128, _GRID, number, minus)
        number = byte(q, 2) | ((rest >> 6) & 7) << 8
        state = put_eighths(to.put, state, offset + 256, _GRID, number, minus)
        number = byte(q, 3) | ((rest >> 9) & 7) << 8
        state = put_eighths(to.put, state, offset + 384, _GRID, number, minus)
        state = to.end(state, sub_block, d * odd_multiple((rest >> 12) & 7))
    return state
