"""Products with Q4_K: 8 x 32 weights of four bits, each 32 with a scale and a minimum."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import NIBBLES, SIX_BITS, byte, low_half, put_high_nibbles, put_low_nibbles
from .layouts import layout_of

FORMAT = block_format("Q4_K")
LAYOUT = layout_of(FORMAT, n_segments=8, n_min_segments=2, min_segment_steps=1, n_factors=8)
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def unpack(to, state, rows, at):
    """d, dmin, scales[12] (eight scales and mins of 6 bits), qs[128]."""
    head = lanes.columns_4(rows, at + D)  # and dmin, scales
    d, dmin = low_half(head[0]), low_half(head[0] >> 16)
    scales = head[1] & SIX_BITS
    for quarter in range(4):  # 64 weights: 32 low nibbles, 32 high ones
        if quarter == 2:
            scales = last_scales(head[1], head[3])
        offset = quarter * 1024
        first = lanes.columns_4(rows, at + QS + quarter * 32)
        second = lanes.columns_4(rows, at + QS + 16 + quarter * 32)
        state = put_low_nibbles(to.put, state, offset, first)
        state = put_low_nibbles(to.put, state, offset + 256, second)
        state = to.end_scaled(state, 2 * quarter, d, byte(scales, 0))
        state = put_high_nibbles(to.put, state, offset + 512, first)
        state = put_high_nibbles(to.put, state, offset + 768, second)
        state = to.end_scaled(state, 2 * quarter + 1, d, byte(scales, 1))
        scales = scales >> 16
    mins, last_mins = minima(head[2], head[3])
    return to.end_eight_minima(to.finish(state, d), mins, last_mins, dmin)


# Of the 12 bytes of scales and minima, three i32 lanes a, b, c: the first four scales lie whole in a's bytes,
# minima in b's; of the last four, scales in the low nibbles of c, minima in the high ones, and their upper two
# bits in the bytes of the first four. Q5_K has the same.


@kernel(inline=True)
def last_scales(a, c):
    """The last four scales, one a byte."""
    return (c & NIBBLES) | ((a >> 2) & 0x30303030)


@kernel(inline=True)
def minima(b, c):
    """The first and the last four minima, one a byte."""
    return b & SIX_BITS, ((c >> 4) & NIBBLES) | ((b >> 2) & 0x30303030)
