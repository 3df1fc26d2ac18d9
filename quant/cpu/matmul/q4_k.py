"""Products with Q4_K: 8 x 32 weights of four bits, each 32 with a scale and a minimum."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import NIBBLES, SIX_BITS, byte, low_half, put_high_nibbles, put_low_nibbles
from .layouts import layout_of

FORMAT = block_format("Q4_K")
LAYOUT = layout_of(FORMAT, n_segments=8, n_min_segments=2, min_segment_steps=1)
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def unpack(put, put_scaled, end, state, rows, at):
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
        state = put_low_nibbles(put, state, offset, first)
        state = put_low_nibbles(put, state, offset + 256, second)
        state = end(state, 2 * quarter, d * simd.to_f32(byte(scales, 0)))
        state = put_high_nibbles(put, state, offset + 512, first)
        state = put_high_nibbles(put, state, offset + 768, second)
        state = end(state, 2 * quarter + 1, d * simd.to_f32(byte(scales, 1)))
        scales = scales >> 16
    return put_minima(put, end, state, head[2], head[3], dmin)


# Of the 12 bytes of scales and minima, three i32 lanes a, b, c: the first four scales lie whole in a's bytes,
# minima in b's; of the last four, scales in the low nibbles of c, minima in the high ones, and their upper two
# bits in the bytes of the first four. Q5_K has the same.


@kernel(inline=True)
def last_scales(a, c):
    """The last four scales, one a byte."""
    return (c & NIBBLES) | ((a >> 2) & 0x30303030)


@kernel(inline=True)
def put_minima(put, end, state, b, c, dmin):
    """Both segments of minima: they meet the high, then the low digits of the sums of x (32 * high + low)."""
    mins, last_mins = b & SIX_BITS, ((c >> 4) & NIBBLES) | ((b >> 2) & 0x30303030)
    state = _put_minima(put, state, 4096, mins, last_mins)
    state = end(state, 8, dmin * np.float32(-32))
    state = _put_minima(put, state, 4352, mins, last_mins)
    return end(state, 9, simd.negate(dmin))


@kernel(inline=True)
def _put_minima(put, state, offset, mins, last_mins):
    """Eight mins in the places of sixteen."""
    zero = simd.splat(0)
    state = put(state, offset, mins)
    state = put(state, offset + 64, last_mins)
    state = put(state, offset + 128, zero)
    return put(state, offset + 192, zero)
