"""Products with IQ2_XXS: 8 x 32 weights, each 32 with a scale, each eight an entry of 256 and their signs."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, half_column
from .grid_words import SHIFT, even_signs, odd_multiple, put_eight, words
from .layouts import layout_of

FORMAT = block_format("IQ2_XXS")
LAYOUT = layout_of(FORMAT, n_segments=8, shift=SHIFT)
D, QS = FORMAT.offsets("d", "qs")
_GRID = words(FORMAT.grid)


@kernel(inline=True)
def _put_32(put, end, state, sub_block, numbers, rest, d):
    offset = 512 * sub_block
    state = put_eight(put, state, offset, _GRID, byte(numbers, 0), even_signs(rest))
    state = put_eight(put, state, offset + 128, _GRID, byte(numbers, 1), even_signs(rest >> 7))
    state = put_eight(put, state, offset + 256, _GRID, byte(numbers, 2), even_signs(rest >> 14))
    state = put_eight(put, state, offset + 384, _GRID, byte(numbers, 3), even_signs(rest >> 21))
    return end(state, sub_block, d * odd_multiple(rest >> 28))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, then of each 32 weights four bytes of entries, four times seven bits of signs and four of scale."""
    d = half_column(rows, at + D) * 0.125
    for pair in range(4):
        q = lanes.columns_4(rows, at + QS + 16 * pair)
        state = _put_32(to.put, to.end, state, 2 * pair, q[0], q[1], d)
        state = _put_32(to.put, to.end, state, 2 * pair + 1, q[2], q[3], d)
    return state
