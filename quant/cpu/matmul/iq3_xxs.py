"""Products with IQ3_XXS: 8 x 32 weights, each 32 with a scale, each four an entry of 256, each eight with signs."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, half_column
from .grid_words import SHIFT, even_signs, odd_multiple, with_signs, words
from .layouts import layout_of

FORMAT = block_format("IQ3_XXS")
LAYOUT = layout_of(FORMAT, n_segments=8, shift=SHIFT)
D, QS, REST = FORMAT.offsets("d", "qs", "scales_and_signs")
_GRID = words(FORMAT.grid)


@kernel(inline=True)
def _put_16(put, state, offset, numbers, rest):
    signs = even_signs(rest)
    state = put(state, offset, with_signs(simd.lookup_far(_GRID, byte(numbers, 0)), signs))
    state = put(
        state, offset + 64, with_signs(simd.lookup_far(_GRID, byte(numbers, 1)), signs >> 4)
    )
    signs = even_signs(rest >> 7)
    state = put(state, offset + 128, with_signs(simd.lookup_far(_GRID, byte(numbers, 2)), signs))
    number = byte(numbers, 3)
    return put(state, offset + 192, with_signs(simd.lookup_far(_GRID, number), signs >> 4))


@kernel(inline=True)
def _put_32(put, end, state, sub_block, first, second, rest, d):
    state = _put_16(put, state, 512 * sub_block, first, rest)
    state = _put_16(put, state, 512 * sub_block + 256, second, rest >> 14)
    return end(state, sub_block, d * odd_multiple(rest >> 28))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[64] (numbers of entries), then of each 32 weights four times seven bits of signs and four of scale."""
    d = half_column(rows, at + D) * 0.25
    for half in range(2):
        rest, first = lanes.columns_4(rows, at + REST + 16 * half), 4 * half
        q = lanes.columns_4(rows, at + QS + 32 * half)
        state = _put_32(to.put, to.end, state, first, q[0], q[1], rest[0], d)
        state = _put_32(to.put, to.end, state, first + 1, q[2], q[3], rest[1], d)
        q = lanes.columns_4(rows, at + QS + 32 * half + 16)
        state = _put_32(to.put, to.end, state, first + 2, q[0], q[1], rest[2], d)
        state = _put_32(to.put, to.end, state, first + 3, q[2], q[3], rest[3], d)
    return state
