"""Products with Q2_K: 16 x 16 weights of two bits, each 16 with a scale and a minimum."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import NIBBLES, byte, low_half
from .layouts import layout_of

FORMAT = block_format("Q2_K")
LAYOUT = layout_of(FORMAT, n_segments=1, n_min_segments=1, min_segment_steps=2, n_factors=16)
SCALES, QS, D = FORMAT.offsets("scales", "qs", "d")


@kernel(inline=True)
def _put_half_of_q2_k(put_two_bits, state, offset, rows, at, low, high):
    """128 weights of 2 bits; `low`, `high`: the scale bytes of their eight runs of 16 weights."""
    q = lanes.columns_4(rows, at)
    state = put_two_bits(state, offset, q, 0, byte(low, 0))
    state = put_two_bits(state, offset + 512, q, 2, byte(low, 2))
    state = put_two_bits(state, offset + 1024, q, 4, byte(high, 0))
    state = put_two_bits(state, offset + 1536, q, 6, byte(high, 2))
    q = lanes.columns_4(rows, at + 16)
    state = put_two_bits(state, offset + 256, q, 0, byte(low, 1))
    state = put_two_bits(state, offset + 768, q, 2, byte(low, 3))
    state = put_two_bits(state, offset + 1280, q, 4, byte(high, 1))
    return put_two_bits(state, offset + 1792, q, 6, byte(high, 3))


@kernel(inline=True)
def unpack(to, state, rows, at):
    """scales[16] (low nibble scale, high nibble min), qs[64], d, dmin."""
    s = lanes.columns_4(rows, at + SCALES)
    low, high = s[0] & NIBBLES, s[1] & NIBBLES
    state = _put_half_of_q2_k(to.put_two_bits, state, 0, rows, at + QS, low, high)
    low, high = s[2] & NIBBLES, s[3] & NIBBLES
    state = _put_half_of_q2_k(to.put_two_bits, state, 2048, rows, at + QS + 32, low, high)
    d = lanes.column_i32(rows, at + D)  # and dmin
    state = to.end(state, 0, low_half(d))
    return to.end_sixteen_minima(state, s, low_half(d >> 16))
