"""Products with Q6_K: 16 x 16 weights of six bits, each 16 with a signed byte as scale."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import NIBBLES, TWO_BITS, half_column
from .layouts import layout_of

FORMAT = block_format("Q6_K")
LAYOUT = layout_of(FORMAT, n_segments=16, shift=-FORMAT.codes[0], n_factors=16)
QL, QH, SCALES, D = FORMAT.offsets("ql", "qh", "scales", "d")


@kernel(inline=True)
def _6_bits(low, high):
    return (low & NIBBLES) | ((high & TWO_BITS) << 4)


@kernel(inline=True)
def _put_6_bits(to, state, segment, q, h, low_shift, high_shift, d, scales, i):
    """One segment of 16 weights."""
    offset = segment * 256
    state = to.put(state, offset, _6_bits(q[0] >> low_shift, h[0] >> high_shift))
    state = to.put(state, offset + 64, _6_bits(q[1] >> low_shift, h[1] >> high_shift))
    state = to.put(state, offset + 128, _6_bits(q[2] >> low_shift, h[2] >> high_shift))
    state = to.put(state, offset + 192, _6_bits(q[3] >> low_shift, h[3] >> high_shift))
    signed = simd.shift_right_signed(scales << (24 - 8 * i), 24)
    return to.end_scaled(state, segment, d, signed)


@kernel(inline=True)
def unpack(to, state, rows, at):
    """ql[128], qh[64], scales[16] signed, d."""
    d = half_column(rows, at + D)
    all_scales = lanes.columns_4(rows, at + SCALES)
    first_scales, last_scales = all_scales[0], all_scales[1]
    for half in range(2):  # 128 weights each
        low_at, first = at + QL + half * 64, half * 8
        q0, q1 = lanes.columns_4(rows, low_at), lanes.columns_4(rows, low_at + 16)
        h0 = lanes.columns_4(rows, at + QH + half * 32)
        h1 = lanes.columns_4(rows, at + QH + 16 + half * 32)
        q2, q3 = lanes.columns_4(rows, low_at + 32), lanes.columns_4(rows, low_at + 48)
        s, s_last = first_scales, last_scales
        state = _put_6_bits(to, state, first, q0, h0, 0, 0, d, s, 0)
        state = _put_6_bits(to, state, first + 1, q1, h1, 0, 0, d, s, 1)
        state = _put_6_bits(to, state, first + 2, q2, h0, 0, 2, d, s, 2)
        state = _put_6_bits(to, state, first + 3, q3, h1, 0, 2, d, s, 3)
        state = _put_6_bits(to, state, first + 4, q0, h0, 4, 4, d, s_last, 0)
        state = _put_6_bits(to, state, first + 5, q1, h1, 4, 4, d, s_last, 1)
        state = _put_6_bits(to, state, first + 6, q2, h0, 4, 6, d, s_last, 2)
        state = _put_6_bits(to, state, first + 7, q3, h1, 4, 6, d, s_last, 3)
        first_scales, last_scales = all_scales[2], all_scales[3]
    return to.finish(state, d)
