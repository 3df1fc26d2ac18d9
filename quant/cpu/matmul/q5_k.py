"""Products with Q5_K: 8 x 32 weights of five bits, each 32 with a scale and a minimum."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import BYTES_1, NIBBLES, SIX_BITS, byte, low_half
from .layouts import layout_of
from .q4_k import last_scales, minima

FORMAT = block_format("Q5_K")
LAYOUT = layout_of(FORMAT, n_segments=8, n_min_segments=2, min_segment_steps=1, n_factors=8)
D, QH, QS = FORMAT.offsets("d", "qh", "qs")


@kernel(inline=True)
def _put_16(put, state, offset, q, high, nibble, bit):
    """16 weights: nibbles of four bytes a lane, and bit `bit` of four others as the fifth."""
    five = ((q[0] >> nibble) & NIBBLES) | ((high[0] >> bit) & BYTES_1) << 4
    state = put(state, offset, five)
    five = ((q[1] >> nibble) & NIBBLES) | ((high[1] >> bit) & BYTES_1) << 4
    state = put(state, offset + 64, five)
    five = ((q[2] >> nibble) & NIBBLES) | ((high[2] >> bit) & BYTES_1) << 4
    state = put(state, offset + 128, five)
    five = ((q[3] >> nibble) & NIBBLES) | ((high[3] >> bit) & BYTES_1) << 4
    return put(state, offset + 192, five)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, dmin, scales[12] as Q4_K's, qh[32] (bit s: the fifth bits of sub-block s), qs[128]."""
    head = lanes.columns_4(rows, at + D)  # and dmin, scales
    d, dmin = low_half(head[0]), low_half(head[0] >> 16)
    first_high, second_high = lanes.columns_4(rows, at + QH), lanes.columns_4(rows, at + QH + 16)
    scales = head[1] & SIX_BITS
    for quarter in range(4):  # 64 weights: 32 low nibbles, 32 high ones
        if quarter == 2:
            scales = last_scales(head[1], head[3])
        offset, bit = quarter * 1024, 2 * quarter
        first = lanes.columns_4(rows, at + QS + quarter * 32)
        second = lanes.columns_4(rows, at + QS + 16 + quarter * 32)
        state = _put_16(to.put, state, offset, first, first_high, 0, bit)
        state = _put_16(to.put, state, offset + 256, second, second_high, 0, bit)
        state = to.end_scaled(state, 2 * quarter, d, byte(scales, 0))
        state = _put_16(to.put, state, offset + 512, first, first_high, 4, bit + 1)
        state = _put_16(to.put, state, offset + 768, second, second_high, 4, bit + 1)
        state = to.end_scaled(state, 2 * quarter + 1, d, byte(scales, 1))
        scales = scales >> 16
    mins, last_mins = minima(head[2], head[3])
    return to.end_eight_minima(to.finish(state, d), mins, last_mins, dmin)
