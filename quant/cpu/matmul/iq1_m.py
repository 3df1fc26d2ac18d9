"""Products with IQ1_M: 16 x 16 weights of -1, 0, 1 and a shift of an eighth, each 16 with a scale, each eight an entry."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, low_half
from .grid_words import odd_multiple, put_eighths, words
from .layouts import layout_of

FORMAT = block_format("IQ1_M")
LAYOUT = layout_of(FORMAT, n_segments=16, shift=16)
QS, QH, SCALES = FORMAT.offsets("qs", "qh", "scales")
_GRID = words(FORMAT.grid, 1)


@kernel(inline=True)
def _put_16(put, end, state, run, q, tops, scale, d):
    """A run: two bytes of entries and one of their high bits and signs, at the bottom."""
    offset = 256 * run
    number = byte(q, 0) | (tops & 7) << 8
    state = put_eighths(put, state, offset, _GRID, number, (tops >> 3) & 1)
    number = byte(q, 1) | ((tops >> 4) & 7) << 8
    state = put_eighths(put, state, offset + 128, _GRID, number, (tops >> 7) & 1)
    return end(state, run, d * odd_multiple(scale & 7))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """qs[32] (numbers of entries), qh[16] (high bits and signs), scales[4] (three bits a run, d's nibbles on top)."""
    first, second = lanes.column_i32(rows, at + SCALES), lanes.column_i32(rows, at + SCALES + 4)
    bits = ((first >> 12) & 0xF) | ((first >> 24) & 0xF0)
    d = low_half(bits | ((second >> 4) & 0xF00) | ((second >> 16) & 0xF000)) * 0.125
    scales = first
    for quarter in range(4):
        if quarter == 2:
            scales = second
        tops, run = lanes.column_i32(rows, at + QH + 4 * quarter), 4 * quarter
        q = lanes.column_i32(rows, at + QS + 8 * quarter)
        state = _put_16(to.put, to.end, state, run, q, tops, scales, d)
        state = _put_16(to.put, to.end, state, run + 1, q >> 16, tops >> 8, scales >> 3, d)
        q = lanes.column_i32(rows, at + QS + 8 * quarter + 4)
        state = _put_16(to.put, to.end, state, run + 2, q, tops >> 16, scales >> 6, d)
        state = _put_16(to.put, to.end, state, run + 3, q >> 16, tops >> 24, scales >> 9, d)
        scales = scales >> 16
    return state
