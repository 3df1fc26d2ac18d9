"""Blocks of 16 weight rows as vectors of bytes and row scales, one function a format.

Every function has the signature ``unpack(put, put_scaled, end, state, rows, at) -> state``. It goes
through one block of the 16 rows whose addresses (int64) stand at `rows`, from byte `at` of each row
on, and hands over what it finds, together with the state, through three functions that return the
new state:

``put(state, offset, v)``
    A dword vector: lane r holds four consecutive bytes of row r. `offset` is its place in a panel:
    64 bytes a vector, the weights in order, then the mins.
``put_scaled(state, offset, q, shift, factor)``
    Four dword vectors in whose bytes the two bits from `shift` on are to be multiplied by `factor` (i32
    lanes); the products still fit into bytes.
``end(state, segment, scales)``
    A segment (a run of weights with one scale) is complete; its row scales as f32x16.

Segments come in order; the vectors of a segment in any order. The bytes are the stored integers,
shifted to be unsigned; `matmul_layouts.py` states segments and shift of each format. Where they
fit into a byte, the integer scales of the format are multiplied in (Q2_K, Q3_K):
``q * scale + shift`` of four bytes at once is one 32-bit multiplication and one addition, since no
byte of the result leaves 0..255 and so none carries into the next.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes

_KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4_NL_BYTES = np.array([k + 128 for k in _KVALUES] * 4, np.uint8)

_BYTES_1 = 0x01010101
_BYTES_4 = 0x04040404
_NIBBLES = 0x0F0F0F0F
_HIGH_NIBBLES = 0xF0F0F0F0
_TWO_BITS = 0x03030303
_SIX_BITS = 0x3F3F3F3F
_TOP_BITS = 0x80808080


@kernel(inline=True)
def _half_column(rows, position):
    return simd.half_to_f32(lanes.column_u16(rows, position))


@kernel(inline=True)
def _low_half(v):
    return simd.half_to_f32(lanes.low_halves(v))


@kernel(inline=True)
def _byte(v, i):
    """Byte `i` of every dword, as an int32 lane."""
    return (v >> (8 * i)) & 255


@kernel(inline=True)
def _put_low_nibbles(put, state, offset, q):
    """16 weights, four vectors."""
    state = put(state, offset, q[0] & _NIBBLES)
    state = put(state, offset + 64, q[1] & _NIBBLES)
    state = put(state, offset + 128, q[2] & _NIBBLES)
    return put(state, offset + 192, q[3] & _NIBBLES)


@kernel(inline=True)
def _put_high_nibbles(put, state, offset, q):
    state = put(state, offset, (q[0] >> 4) & _NIBBLES)
    state = put(state, offset + 64, (q[1] >> 4) & _NIBBLES)
    state = put(state, offset + 128, (q[2] >> 4) & _NIBBLES)
    return put(state, offset + 192, (q[3] >> 4) & _NIBBLES)


# ---------------------------------------------------------------- 32 weights a block, one scale


@kernel(inline=True)
def _put_signed(put, state, offset, q):
    state = put(state, offset, q[0] ^ _TOP_BITS)
    state = put(state, offset + 64, q[1] ^ _TOP_BITS)
    state = put(state, offset + 128, q[2] ^ _TOP_BITS)
    return put(state, offset + 192, q[3] ^ _TOP_BITS)


@kernel(inline=True)
def unpack_q8_0(put, put_scaled, end, state, rows, at):
    """34 bytes: d, qs[32] signed."""
    d = _half_column(rows, at)
    state = _put_signed(put, state, 0, lanes.columns_4(rows, at + 2))
    state = _put_signed(put, state, 256, lanes.columns_4(rows, at + 18))
    return end(state, 0, d)


@kernel(inline=True)
def unpack_q4_0(put, put_scaled, end, state, rows, at):
    """18 bytes: d, qs[16] (low nibbles, then high)."""
    d = _half_column(rows, at)
    q = lanes.columns_4(rows, at + 2)
    state = _put_low_nibbles(put, state, 0, q)
    state = _put_high_nibbles(put, state, 256, q)
    return end(state, 0, d)


@kernel(inline=True)
def _looked_up(table, q):
    return simd.as_i32x16(simd.bytes16(table, simd.as_u8x64(q & _NIBBLES)))


@kernel(inline=True)
def unpack_iq4_nl(put, put_scaled, end, state, rows, at):
    """18 bytes: d, qs[16] (low nibbles, then high), each an index into 16 values."""
    table = simd.load_u8x64(_IQ4_NL_BYTES, 0)
    d = _half_column(rows, at)
    q = lanes.columns_4(rows, at + 2)
    state = put(state, 0, _looked_up(table, q[0]))
    state = put(state, 64, _looked_up(table, q[1]))
    state = put(state, 128, _looked_up(table, q[2]))
    state = put(state, 192, _looked_up(table, q[3]))
    state = put(state, 256, _looked_up(table, q[0] >> 4))
    state = put(state, 320, _looked_up(table, q[1] >> 4))
    state = put(state, 384, _looked_up(table, q[2] >> 4))
    state = put(state, 448, _looked_up(table, q[3] >> 4))
    return end(state, 0, d)


# ---------------------------------------------------------------- 256 weights a block


@kernel(inline=True)
def _put_half_of_q2_k(put_scaled, state, offset, rows, at, low, high):
    """128 weights of 2 bits; `low`, `high`: the scale bytes of their eight runs of 16 weights."""
    q = lanes.columns_4(rows, at)
    state = put_scaled(state, offset, q, 0, _byte(low, 0))
    state = put_scaled(state, offset + 512, q, 2, _byte(low, 2))
    state = put_scaled(state, offset + 1024, q, 4, _byte(high, 0))
    state = put_scaled(state, offset + 1536, q, 6, _byte(high, 2))
    q = lanes.columns_4(rows, at + 16)
    state = put_scaled(state, offset + 256, q, 0, _byte(low, 1))
    state = put_scaled(state, offset + 768, q, 2, _byte(low, 3))
    state = put_scaled(state, offset + 1280, q, 4, _byte(high, 1))
    return put_scaled(state, offset + 1792, q, 6, _byte(high, 3))


@kernel(inline=True)
def unpack_q2_k(put, put_scaled, end, state, rows, at):
    """84 bytes: scales[16] (low nibble scale, high nibble min), qs[64], d, dmin."""
    s = lanes.columns_4(rows, at)
    low, high = s[0] & _NIBBLES, s[1] & _NIBBLES
    state = _put_half_of_q2_k(put_scaled, state, 0, rows, at + 16, low, high)
    low, high = s[2] & _NIBBLES, s[3] & _NIBBLES
    state = _put_half_of_q2_k(put_scaled, state, 2048, rows, at + 48, low, high)
    d = lanes.column_i32(rows, at + 80)
    state = end(state, 0, _low_half(d))
    # The mins, 16 * min and min, meet the sums of x, which are 16 * high + low.
    state = put(state, 4096, s[0] & _HIGH_NIBBLES)
    state = put(state, 4160, s[1] & _HIGH_NIBBLES)
    state = put(state, 4224, s[2] & _HIGH_NIBBLES)
    state = put(state, 4288, s[3] & _HIGH_NIBBLES)
    state = _put_high_nibbles(put, state, 4352, s)
    return end(state, 1, simd.negate(_low_half(d >> 16)))


@kernel(inline=True)
def _3_bits(q, top, factor, shifted):
    """`q`: two bits at the bottom of each byte; `top`: the third where it belongs."""
    return ((q & _TWO_BITS) | (top & _BYTES_4)) * factor + shifted


@kernel(inline=True)
def _put_3_bits(put, state, offset, shift, q, top, low, high):
    """`low`, `high`: lanes with 4 and 2 bits of the scale; the scale is 32 less."""
    factor = (low | (high << 4)) - 32
    shifted = (factor * -4 + 124) * _BYTES_1
    state = put(state, offset, _3_bits(q[0] >> shift, top[0], factor, shifted))
    state = put(state, offset + 64, _3_bits(q[1] >> shift, top[1], factor, shifted))
    state = put(state, offset + 128, _3_bits(q[2] >> shift, top[2], factor, shifted))
    return put(state, offset + 192, _3_bits(q[3] >> shift, top[3], factor, shifted))


@kernel(inline=True)
def _each_shifted_left(v, n):
    return v[0] << n, v[1] << n, v[2] << n, v[3] << n


@kernel(inline=True)
def _each_shifted_right(v, n):
    return v[0] >> n, v[1] >> n, v[2] >> n, v[3] >> n


@kernel(inline=True)
def _put_half_of_q3_k(put, state, offset, rows, at, part, s, h):
    """16 of every 32 of 128 weights; `s`: scales with this half's nibbles low; `h`: its bits too."""
    q = lanes.columns_4(rows, at)
    low_0, low_1 = s[1] & _NIBBLES, s[2] & _NIBBLES
    high_0, high_1 = s[3] & _TWO_BITS, (s[3] >> 2) & _TWO_BITS
    top, low, high = _each_shifted_left(h, 2), _byte(low_0, part), _byte(high_0, part)
    state = _put_3_bits(put, state, offset, 0, q, top, low, high)
    top = _each_shifted_left(h, 1)
    low, high = _byte(low_0, part + 2), _byte(high_0, part + 2)
    state = _put_3_bits(put, state, offset + 512, 2, q, top, low, high)
    low, high = _byte(low_1, part), _byte(high_1, part)
    state = _put_3_bits(put, state, offset + 1024, 4, q, h, low, high)
    top = _each_shifted_right(h, 1)
    low, high = _byte(low_1, part + 2), _byte(high_1, part + 2)
    return _put_3_bits(put, state, offset + 1536, 6, q, top, low, high)


@kernel(inline=True)
def unpack_q3_k(put, put_scaled, end, state, rows, at):
    """110 bytes: hmask[32], qs[64], scales[12] (6 bits each, less 32), d."""
    s = lanes.columns_4(rows, at + 92)  # four bytes of qs, then the scales
    last_s = _each_shifted_right(s, 4)
    for part in range(2):  # 16 of each 32 weights
        h = lanes.columns_4(rows, at + part * 16)
        q_at = at + 32 + part * 16
        state = _put_half_of_q3_k(put, state, part * 256, rows, q_at, part, s, h)
        h = _each_shifted_right(h, 4)
        offset = 2048 + part * 256
        state = _put_half_of_q3_k(put, state, offset, rows, q_at + 32, part, last_s, h)
    return end(state, 0, _half_column(rows, at + 108))


@kernel(inline=True)
def unpack_q4_k(put, put_scaled, end, state, rows, at):
    """144 bytes: d, dmin, scales[12] (eight scales and mins of 6 bits), qs[128]."""
    head = lanes.columns_4(rows, at)
    a, b, c = head[1], head[2], head[3]
    d, dmin = _low_half(head[0]), _low_half(head[0] >> 16)
    scales = a & _SIX_BITS
    last_scales = (c & _NIBBLES) | ((a >> 2) & 0x30303030)
    for quarter in range(4):  # 64 weights: 32 low nibbles, 32 high ones
        if quarter == 2:
            scales = last_scales
        offset = quarter * 1024
        first = lanes.columns_4(rows, at + 16 + quarter * 32)
        second = lanes.columns_4(rows, at + 32 + quarter * 32)
        state = _put_low_nibbles(put, state, offset, first)
        state = _put_low_nibbles(put, state, offset + 256, second)
        state = end(state, 2 * quarter, d * simd.to_f32(_byte(scales, 0)))
        state = _put_high_nibbles(put, state, offset + 512, first)
        state = _put_high_nibbles(put, state, offset + 768, second)
        state = end(state, 2 * quarter + 1, d * simd.to_f32(_byte(scales, 1)))
        scales = scales >> 16
    # The mins meet the high, then the low digits of the sums of x (32 * high + low).
    mins, last_mins = b & _SIX_BITS, ((c >> 4) & _NIBBLES) | ((b >> 2) & 0x30303030)
    state = _put_q4_k_mins(put, state, 4096, mins, last_mins)
    state = end(state, 8, dmin * np.float32(-32))
    state = _put_q4_k_mins(put, state, 4352, mins, last_mins)
    return end(state, 9, simd.negate(dmin))


@kernel(inline=True)
def _put_q4_k_mins(put, state, offset, mins, last_mins):
    """Eight mins in the places of sixteen."""
    zero = simd.splat(0)
    state = put(state, offset, mins)
    state = put(state, offset + 64, last_mins)
    state = put(state, offset + 128, zero)
    return put(state, offset + 192, zero)


@kernel(inline=True)
def _6_bits(low, high):
    return (low & _NIBBLES) | ((high & _TWO_BITS) << 4)


@kernel(inline=True)
def _put_6_bits(put, end, state, segment, q, h, low_shift, high_shift, d, scales, i):
    """One segment of 16 weights."""
    offset = segment * 256
    state = put(state, offset, _6_bits(q[0] >> low_shift, h[0] >> high_shift))
    state = put(state, offset + 64, _6_bits(q[1] >> low_shift, h[1] >> high_shift))
    state = put(state, offset + 128, _6_bits(q[2] >> low_shift, h[2] >> high_shift))
    state = put(state, offset + 192, _6_bits(q[3] >> low_shift, h[3] >> high_shift))
    signed = simd.shift_right_signed(scales << (24 - 8 * i), 24)
    return end(state, segment, d * simd.to_f32(signed))


@kernel(inline=True)
def unpack_q6_k(put, put_scaled, end, state, rows, at):
    """210 bytes: ql[128], qh[64], scales[16] signed, d."""
    d = _half_column(rows, at + 208)
    all_scales = lanes.columns_4(rows, at + 192)
    first_scales, last_scales = all_scales[0], all_scales[1]
    for half in range(2):  # 128 weights each
        low_at, first = at + half * 64, half * 8
        q0, q1 = lanes.columns_4(rows, low_at), lanes.columns_4(rows, low_at + 16)
        h0 = lanes.columns_4(rows, at + 128 + half * 32)
        h1 = lanes.columns_4(rows, at + 144 + half * 32)
        q2, q3 = lanes.columns_4(rows, low_at + 32), lanes.columns_4(rows, low_at + 48)
        s, s_last = first_scales, last_scales
        state = _put_6_bits(put, end, state, first, q0, h0, 0, 0, d, s, 0)
        state = _put_6_bits(put, end, state, first + 1, q1, h1, 0, 0, d, s, 1)
        state = _put_6_bits(put, end, state, first + 2, q2, h0, 0, 2, d, s, 2)
        state = _put_6_bits(put, end, state, first + 3, q3, h1, 0, 2, d, s, 3)
        state = _put_6_bits(put, end, state, first + 4, q0, h0, 4, 4, d, s_last, 0)
        state = _put_6_bits(put, end, state, first + 5, q1, h1, 4, 4, d, s_last, 1)
        state = _put_6_bits(put, end, state, first + 6, q2, h0, 4, 6, d, s_last, 2)
        state = _put_6_bits(put, end, state, first + 7, q3, h1, 4, 6, d, s_last, 3)
        first_scales, last_scales = all_scales[2], all_scales[3]
    return state


# ---------------------------------------------------------------- into a panel
# The last two of a state, here and below, say what to fetch meanwhile: an address, and how many
# bytes it moves on with every vector. Fetches are spread out because the CPU keeps only some two
# dozen of them in flight and stops at the next one.


@kernel(inline=True)
def _store(state, offset, v):
    panel, scales, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(panel + offset, v)
    return panel, scales, ahead + step, step


@kernel(inline=True)
def _store_scaled(state, offset, q, shift, factor):
    state = _store(state, offset, ((q[0] >> shift) & _TWO_BITS) * factor)
    state = _store(state, offset + 64, ((q[1] >> shift) & _TWO_BITS) * factor)
    state = _store(state, offset + 128, ((q[2] >> shift) & _TWO_BITS) * factor)
    return _store(state, offset + 192, ((q[3] >> shift) & _TWO_BITS) * factor)


@kernel(inline=True)
def _store_scales(state, segment, scales):
    panel, scales_at, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(scales_at + segment * 64, scales)
    return panel, scales_at, ahead + step, step


@kernel(inline=True)
def to_panel(unpack, rows, at, panel, scales, ahead, fetch_step):
    """A block's vectors to `panel`, its row scales, 16 float32 a segment, to `scales`.

    Meanwhile a block of 16 other rows is fetched, from address `ahead` on.
    """
    unpack(_store, _store_scaled, _store_scales, (panel, scales, ahead, fetch_step), rows, at)


# ---------------------------------------------------------------- straight into a product
# The state: the running total, the integer sums of the segment, where its activations lie, and
# what to fetch.


@kernel(inline=True)
def _dot(state, offset, v):
    total, sums, x, x_scales, x_starts, ahead, step = state
    simd.prefetch(ahead)
    sums = lanes.dot_column(sums, v, x + offset // 16)
    return total, sums, x, x_scales, x_starts, ahead + step, step


@kernel(inline=True)
def _dot_scaled(state, offset, q, shift, factor):
    """The bits stay where they are: shifting the sum is cheaper, and as exact."""
    total, sums, x, x_scales, x_starts, ahead, step = state
    x_at, bits = x + offset // 16, _TWO_BITS << shift
    simd.prefetch(ahead)
    run = lanes.dot_column(simd.splat(0), q[0] & bits, x_at)
    run = lanes.dot_column(run, q[1] & bits, x_at + 4)
    simd.prefetch(ahead + 2 * step)
    run = lanes.dot_column(run, q[2] & bits, x_at + 8)
    run = lanes.dot_column(run, q[3] & bits, x_at + 12)
    sums += simd.shift_right_signed(run, shift) * factor
    return total, sums, x, x_scales, x_starts, ahead + 4 * step, step


@kernel(inline=True)
def _add_segment(state, segment, scales):
    """As lanes.add_scaled_tile does it, so that the bits are the same."""
    total, sums, x, x_scales, x_starts, ahead, step = state
    simd.prefetch(ahead)
    scale = scales * lanes.splat_f32(x_scales + 4 * segment)
    total = simd.multiply_add(simd.to_f32(sums), scale, total)
    sums = lanes.splat_i32(x_starts + 4 * segment + 4)
    return total, sums, x, x_scales, x_starts, ahead + step, step


@kernel(inline=True)
def to_product(unpack, rows, at, total, x, x_scales, x_starts, ahead, step):
    """`total` with the product of a block of 16 rows and of one row of x added.

    Meanwhile a block of 16 other rows is fetched, from address `ahead` on, `fetch_step` bytes a vector.
    """
    state = (total, lanes.splat_i32(x_starts), x, x_scales, x_starts, ahead, step)
    return unpack(_dot, _dot_scaled, _add_segment, state, rows, at)[0]
