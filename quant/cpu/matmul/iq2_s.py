"""Products with IQ2_S: 16 x 16 weights, each 16 with a scale, each eight an entry of 1024 and eight signs."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, half_column
from .grid_words import SHIFT, odd_multiple, put_eight, words
from .layouts import layout_of

FORMAT = block_format("IQ2_S")
LAYOUT = layout_of(FORMAT, n_segments=16, shift=SHIFT)
D, QS, SIGNS, QH, SCALES = FORMAT.offsets("d", "qs", "signs", "qh", "scales")
_GRID = words(FORMAT.grid)


@kernel(inline=True)
def _put_32(put, end, state, run, q, signs, tops, scales, d):
    """Two runs: their four bytes of entries, of signs, and a byte of high bits and one of scales at the bottom."""
    offset = 256 * run
    number = byte(q, 0) | (tops & 3) << 8
    state = put_eight(put, state, offset, _GRID, number, byte(signs, 0))
    number = byte(q, 1) | ((tops >> 2) & 3) << 8
    state = put_eight(put, state, offset + 128, _GRID, number, byte(signs, 1))
    state = end(state, run, d * odd_multiple(scales & 15))
    number = byte(q, 2) | ((tops >> 4) & 3) << 8
    state = put_eight(put, state, offset + 256, _GRID, number, byte(signs, 2))
    number = byte(q, 3) | ((tops >> 6) & 3) << 8
    state = put_eight(put, state, offset + 384, _GRID, number, byte(signs, 3))
    return end(state, run + 1, d * odd_multiple((scales >> 4) & 15))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[32] (numbers of entries), signs[32], qh[8] (the numbers' high two bits), scales[8] of four bits."""
    d = half_column(rows, at + D) * 0.125
    for half in range(2):
        q, signs = (
            lanes.columns_4(rows, at + QS + 16 * half),
            lanes.columns_4(rows, at + SIGNS + 16 * half),
        )
        tops = lanes.column_i32(rows, at + QH + 4 * half)
        scales, run = lanes.column_i32(rows, at + SCALES + 4 * half), 8 * half
        state = _put_32(to.put, to.end, state, run, q[0], signs[0], tops, scales, d)
        state = _put_32(to.put, to.end, state, run + 2, q[1], signs[1], tops >> 8, scales >> 8, d)
        state = _put_32(to.put, to.end, state, run + 4, q[2], signs[2], tops >> 16, scales >> 16, d)
        state = _put_32(to.put, to.end, state, run + 6, q[3], signs[3], tops >> 24, scales >> 24, d)
    return state
