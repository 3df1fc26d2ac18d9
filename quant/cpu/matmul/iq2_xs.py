"""Products with IQ2_XS: 16 x 16 weights, each 16 with a scale, each eight an entry of 512 and their signs."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column
from .grid_words import SHIFT, even_signs, odd_multiple, put_eight, words
from .layouts import layout_of

FORMAT = block_format("IQ2_XS")
LAYOUT = layout_of(FORMAT, n_segments=16, shift=SHIFT)
D, QS, SCALES = FORMAT.offsets("d", "qs", "scales")
_GRID = words(FORMAT.grid)


@kernel(inline=True)
def _put_16(put, end, state, run, q, scale, d):
    offset = 256 * run
    state = put_eight(put, state, offset, _GRID, q & 511, even_signs(q >> 9))
    state = put_eight(put, state, offset + 128, _GRID, (q >> 16) & 511, even_signs(q >> 25))
    return end(state, run, d * odd_multiple(scale & 15))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, then of each eight weights nine bits of entry and seven of signs; scales of four bits."""
    d = half_column(rows, at + D) * 0.125
    scales = lanes.column_i32(rows, at + SCALES)
    for quarter in range(4):
        if quarter == 2:
            scales = lanes.column_i32(rows, at + SCALES + 4)
        q, run = lanes.columns_4(rows, at + QS + 16 * quarter), 4 * quarter
        state = _put_16(to.put, to.end, state, run, q[0], scales, d)
        state = _put_16(to.put, to.end, state, run + 1, q[1], scales >> 4, d)
        state = _put_16(to.put, to.end, state, run + 2, q[2], scales >> 8, d)
        state = _put_16(to.put, to.end, state, run + 3, q[3], scales >> 12, d)
        scales = scales >> 16
    return state
