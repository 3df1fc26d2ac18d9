"""Products with Q3_K: 16 x 16 weights of three bits, each 16 with a scale of six."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import BYTES_4, NIBBLES, TWO_BITS, byte, half_column
from .layouts import layout_of

FORMAT = block_format("Q3_K")
LEAST = FORMAT.codes[0]
SHIFT = -FORMAT.products[0]  # 124
LAYOUT = layout_of(FORMAT, n_segments=1, shift=SHIFT, n_factors=16, code_shift=-LEAST)
HMASK, QS, SCALES, D = FORMAT.offsets("hmask", "qs", "scales", "d")


@kernel(inline=True)
def _3_bits(q, top):
    """`q`: two bits at the bottom of each byte; `top`: the third where it belongs."""
    return (q & TWO_BITS) | (top & BYTES_4)


@kernel(inline=True)
def _put_3_bits(to, state, offset, shift, q, top, low, high):
    """`low`, `high`: lanes with 4 and 2 bits of the scale; the scale is 32 less."""
    factor = (low | (high << 4)) - 32
    a, b = _3_bits(q[0] >> shift, top[0]), _3_bits(q[1] >> shift, top[1])
    c, d = _3_bits(q[2] >> shift, top[2]), _3_bits(q[3] >> shift, top[3])
    return to.put_scaled(state, offset, a, b, c, d, factor, LEAST, SHIFT)


@kernel(inline=True)
def _each_shifted_left(v, n):
    return v[0] << n, v[1] << n, v[2] << n, v[3] << n


@kernel(inline=True)
def _each_shifted_right(v, n):
    return v[0] >> n, v[1] >> n, v[2] >> n, v[3] >> n


@kernel(inline=True)
def _put_half_of_q3_k(to, state, offset, rows, at, part, s, h):
    """16 of every 32 of 128 weights; `s`: scales with this half's nibbles low; `h`: its bits too."""
    q = lanes.columns_4(rows, at)
    low_0, low_1 = s[1] & NIBBLES, s[2] & NIBBLES
    high_0, high_1 = s[3] & TWO_BITS, (s[3] >> 2) & TWO_BITS
    top, low, high = _each_shifted_left(h, 2), byte(low_0, part), byte(high_0, part)
    state = _put_3_bits(to, state, offset, 0, q, top, low, high)
    top = _each_shifted_left(h, 1)
    low, high = byte(low_0, part + 2), byte(high_0, part + 2)
    state = _put_3_bits(to, state, offset + 512, 2, q, top, low, high)
    low, high = byte(low_1, part), byte(high_1, part)
    state = _put_3_bits(to, state, offset + 1024, 4, q, h, low, high)
    top = _each_shifted_right(h, 1)
    low, high = byte(low_1, part + 2), byte(high_1, part + 2)
    return _put_3_bits(to, state, offset + 1536, 6, q, top, low, high)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """hmask[32], qs[64], scales[12] (6 bits each, less 32), d."""
    s = lanes.columns_4(rows, at + SCALES - 4)  # four bytes of qs, then the scales
    last_s = _each_shifted_right(s, 4)
    for part in range(2):  # 16 of each 32 weights
        h = lanes.columns_4(rows, at + HMASK + part * 16)
        q_at = at + QS + part * 16
        state = _put_half_of_q3_k(to, state, part * 256, rows, q_at, part, s, h)
        h = _each_shifted_right(h, 4)
        offset = 2048 + part * 256
        state = _put_half_of_q3_k(to, state, offset, rows, q_at + 32, part, last_s, h)
    return to.end(state, 0, half_column(rows, at + D))
