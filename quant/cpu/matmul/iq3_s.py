"""Products with IQ3_S: 8 x 32 weights, each 32 with a scale, each four an entry of 512, each eight with eight signs."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import byte, half_column
from .grid_words import SHIFT, odd_multiple, with_signs, words
from .layouts import layout_of

FORMAT = block_format("IQ3_S")
LAYOUT = layout_of(FORMAT, n_segments=8, shift=SHIFT)
D, QS, QH, SIGNS, SCALES = FORMAT.offsets("d", "qs", "qh", "signs", "scales")
_GRID = words(FORMAT.grid)


@kernel(inline=True)
def _four(numbers, i, tops, signs):
    """Four weights: entry of byte i of `numbers` and bit 0 of `tops`."""
    number = byte(numbers, i) | (tops & 1) << 8
    return with_signs(simd.lookup_far(_GRID, number), signs)


@kernel(inline=True)
def _put_16(put, state, offset, numbers, tops, signs):
    state = put(state, offset, _four(numbers, 0, tops, signs))
    state = put(state, offset + 64, _four(numbers, 1, tops >> 1, signs >> 4))
    state = put(state, offset + 128, _four(numbers, 2, tops >> 2, signs >> 8))
    return put(state, offset + 192, _four(numbers, 3, tops >> 3, signs >> 12))


@kernel(inline=True)
def _put_32(put, end, state, sub_block, first, second, tops, signs, scale, d):
    state = _put_16(put, state, 512 * sub_block, first, tops, signs)
    state = _put_16(put, state, 512 * sub_block + 256, second, tops >> 4, signs >> 16)
    return end(state, sub_block, d * odd_multiple(scale & 15))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, qs[64] (numbers of entries), qh[8] (their ninth bits), signs[32], scales[4] of four bits."""
    d = half_column(rows, at + D)
    scales = lanes.column_i32(rows, at + SCALES)
    for half in range(2):
        tops = lanes.column_i32(rows, at + QH + 4 * half)
        signs, first = lanes.columns_4(rows, at + SIGNS + 16 * half), 4 * half
        q = lanes.columns_4(rows, at + QS + 32 * half)
        state = _put_32(to.put, to.end, state, first, q[0], q[1], tops, signs[0], scales, d)
        state = _put_32(
            to.put, to.end, state, first + 1, q[2], q[3], tops >> 8, signs[1], scales >> 4, d
        )
        q = lanes.columns_4(rows, at + QS + 32 * half + 16)
        state = _put_32(
            to.put, to.end, state, first + 2, q[0], q[1], tops >> 16, signs[2], scales >> 8, d
        )
        state = _put_32(
            to.put, to.end, state, first + 3, q[2], q[3], tops >> 24, signs[3], scales >> 12, d
        )
        scales = scales >> 16
    return state
