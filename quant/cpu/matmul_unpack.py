"""Blocks of 16 weight rows -> a panel of bytes and row scales, one function a format.

Every function has the signature ``unpack(rows, at, out, scales)``:

rows
    Address of 16 int64, the addresses of the rows (a row may stand there twice).
at
    Byte at which the block begins in each row.
out
    Address of the result: the dwords of the weights in order, then those of the mins; a dword is a
    vector of 64 bytes, lane r the four unsigned bytes of row r.
scales
    Address of the row scales: per segment (a run of weights with one scale) 16 float32.

The panel's bytes are the stored integers, shifted to be unsigned; `matmul_layouts.py` states segments and
shift of each format. Where they fit into a byte the integer scales of the format are multiplied in
(Q2_K, Q3_K): ``q * scale + shift`` of four bytes at once is one 32-bit multiplication and one
addition, since no byte of the result leaves 0..255 and so none carries into the next.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from quant.cpu import matmul_lanes as lanes

_KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4_NL_BYTES = np.array([k + 128 for k in _KVALUES] * 4, np.uint8)

_BYTES_1 = 0x01010101
_NIBBLES = 0x0F0F0F0F
_HIGH_NIBBLES = 0xF0F0F0F0
_TWO_BITS = 0x03030303
_SIX_BITS = 0x3F3F3F3F


@kernel(inline=True)
def _half_column(rows, position):
    return simd.half_to_f32(lanes.column_u16(rows, position))


@kernel(inline=True)
def _low_half(v):
    return simd.half_to_f32(lanes.low_halves(v))


# ---------------------------------------------------------------- 32 weights a block, one scale


@kernel(inline=True)
def unpack_q8_0(rows, at, out, scales):
    """34 bytes: d, qs[32] signed."""
    lanes.put(scales, _half_column(rows, at))
    for half in range(2):
        q = lanes.columns_4(rows, at + 2 + half * 16)
        lanes.put(out + half * 256, q[0] ^ 0x80808080)
        lanes.put(out + half * 256 + 64, q[1] ^ 0x80808080)
        lanes.put(out + half * 256 + 128, q[2] ^ 0x80808080)
        lanes.put(out + half * 256 + 192, q[3] ^ 0x80808080)


@kernel(inline=True)
def _put_nibbles(out, q):
    """Four weights from low nibbles at `out`, four from high nibbles 16 weights further."""
    lanes.put(out, q & _NIBBLES)
    lanes.put(out + 256, (q >> 4) & _NIBBLES)


@kernel(inline=True)
def unpack_q4_0(rows, at, out, scales):
    """18 bytes: d, qs[16] (low nibbles, then high)."""
    lanes.put(scales, _half_column(rows, at))
    q = lanes.columns_4(rows, at + 2)
    _put_nibbles(out, q[0])
    _put_nibbles(out + 64, q[1])
    _put_nibbles(out + 128, q[2])
    _put_nibbles(out + 192, q[3])


@kernel(inline=True)
def _put_looked_up(out, table, q):
    lanes.put(out, simd.bytes16(table, simd.as_u8x64(q & _NIBBLES)))
    lanes.put(out + 256, simd.bytes16(table, simd.as_u8x64((q >> 4) & _NIBBLES)))


@kernel(inline=True)
def unpack_iq4_nl(rows, at, out, scales):
    """18 bytes: d, qs[16] (low nibbles, then high), each an index into 16 values."""
    table = simd.load_u8x64(_IQ4_NL_BYTES, 0)
    lanes.put(scales, _half_column(rows, at))
    q = lanes.columns_4(rows, at + 2)
    _put_looked_up(out, table, q[0])
    _put_looked_up(out + 64, table, q[1])
    _put_looked_up(out + 128, table, q[2])
    _put_looked_up(out + 192, table, q[3])


# ---------------------------------------------------------------- 256 weights a block


@kernel(inline=True)
def _byte(v, i):
    """Byte `i` of every dword, as an int32 lane."""
    return (v >> (8 * i)) & 255


@kernel(inline=True)
def _put_2_bits(out, q, shift, factor):
    lanes.put(out, ((q >> shift) & _TWO_BITS) * factor)


@kernel(inline=True)
def _put_16_of_2_bits(out, q, shift, factor):
    _put_2_bits(out, q[0], shift, factor)
    _put_2_bits(out + 64, q[1], shift, factor)
    _put_2_bits(out + 128, q[2], shift, factor)
    _put_2_bits(out + 192, q[3], shift, factor)


@kernel(inline=True)
def _put_half_of_q2_k(rows, at, out, low, high):
    """128 weights of 2 bits; scale bytes of their eight runs of 16 weights in `low` and `high`."""
    q = lanes.columns_4(rows, at)
    _put_16_of_2_bits(out, q, 0, _byte(low, 0))
    _put_16_of_2_bits(out + 512, q, 2, _byte(low, 2))
    _put_16_of_2_bits(out + 1024, q, 4, _byte(high, 0))
    _put_16_of_2_bits(out + 1536, q, 6, _byte(high, 2))
    q = lanes.columns_4(rows, at + 16)
    _put_16_of_2_bits(out + 256, q, 0, _byte(low, 1))
    _put_16_of_2_bits(out + 768, q, 2, _byte(low, 3))
    _put_16_of_2_bits(out + 1280, q, 4, _byte(high, 1))
    _put_16_of_2_bits(out + 1792, q, 6, _byte(high, 3))


@kernel(inline=True)
def _put_q2_k_mins(out, s):
    lanes.put(out, s & _HIGH_NIBBLES)
    lanes.put(out + 256, (s >> 4) & _NIBBLES)


@kernel(inline=True)
def unpack_q2_k(rows, at, out, scales):
    """84 bytes: scales[16] (low nibble scale, high nibble min), qs[64], d, dmin."""
    s = lanes.columns_4(rows, at)
    _put_half_of_q2_k(rows, at + 16, out, s[0] & _NIBBLES, s[1] & _NIBBLES)
    _put_half_of_q2_k(rows, at + 48, out + 2048, s[2] & _NIBBLES, s[3] & _NIBBLES)
    # The mins, 16 * min and min, meet the sums of x, which are 16 * high + low.
    _put_q2_k_mins(out + 4096, s[0])
    _put_q2_k_mins(out + 4096 + 64, s[1])
    _put_q2_k_mins(out + 4096 + 128, s[2])
    _put_q2_k_mins(out + 4096 + 192, s[3])
    d = lanes.column_i32(rows, at + 80)
    lanes.put(scales, _low_half(d))
    lanes.put(scales + 64, simd.negate(_low_half(d >> 16)))


@kernel(inline=True)
def _put_3_bits(out, q, h, shift, bit, factor, shifted):
    three = ((q >> shift) & _TWO_BITS) | (((h >> bit) & _BYTES_1) << 2)
    lanes.put(out, three * factor + shifted)


@kernel(inline=True)
def _put_16_of_3_bits(out, q, h, shift, bit, low, high):
    """`low`, `high`: lanes with 4 and 2 bits of the scale; the scale is 32 less."""
    factor = (low | (high << 4)) - 32
    shifted = (factor * -4 + 124) * _BYTES_1
    _put_3_bits(out, q[0], h[0], shift, bit, factor, shifted)
    _put_3_bits(out + 64, q[1], h[1], shift, bit, factor, shifted)
    _put_3_bits(out + 128, q[2], h[2], shift, bit, factor, shifted)
    _put_3_bits(out + 192, q[3], h[3], shift, bit, factor, shifted)


@kernel(inline=True)
def unpack_q3_k(rows, at, out, scales):
    """110 bytes: hmask[32], qs[64], scales[12] (6 bits each, less 32), d."""
    lanes.put(scales, _half_column(rows, at + 108))
    s = lanes.columns_4(rows, at + 92)  # four bytes of qs, then the scales
    for half in range(2):  # 128 weights each
        low_0 = (s[1] >> (4 * half)) & _NIBBLES
        low_1 = (s[2] >> (4 * half)) & _NIBBLES
        high_0 = (s[3] >> (4 * half)) & _TWO_BITS
        high_1 = (s[3] >> (4 * half + 2)) & _TWO_BITS
        for part in range(2):  # 16 of each 32 weights
            q = lanes.columns_4(rows, at + 32 + half * 32 + part * 16)
            h = lanes.columns_4(rows, at + part * 16)
            to, bit = out + half * 2048 + part * 256, 4 * half
            _put_16_of_3_bits(to, q, h, 0, bit, _byte(low_0, part), _byte(high_0, part))
            _put_16_of_3_bits(
                to + 512, q, h, 2, bit + 1, _byte(low_0, part + 2), _byte(high_0, part + 2)
            )
            _put_16_of_3_bits(to + 1024, q, h, 4, bit + 2, _byte(low_1, part), _byte(high_1, part))
            _put_16_of_3_bits(
                to + 1536, q, h, 6, bit + 3, _byte(low_1, part + 2), _byte(high_1, part + 2)
            )


@kernel(inline=True)
def _put_four_scales(scales, d, integers):
    """d * integer for the four bytes of every dword, one vector each."""
    lanes.put(scales, d * simd.to_f32(_byte(integers, 0)))
    lanes.put(scales + 64, d * simd.to_f32(_byte(integers, 1)))
    lanes.put(scales + 128, d * simd.to_f32(_byte(integers, 2)))
    lanes.put(scales + 192, d * simd.to_f32(_byte(integers, 3)))


@kernel(inline=True)
def unpack_q4_k(rows, at, out, scales):
    """144 bytes: d, dmin, scales[12] (eight scales and mins of 6 bits), qs[128]."""
    zero = simd.splat(0)
    head = lanes.columns_4(rows, at)
    a, b, c = head[1], head[2], head[3]
    d, dmin = _low_half(head[0]), _low_half(head[0] >> 16)
    _put_four_scales(scales, d, a & _SIX_BITS)
    _put_four_scales(scales + 256, d, (c & _NIBBLES) | ((a >> 2) & 0x30303030))
    lanes.put(scales + 512, dmin * np.float32(-32))
    lanes.put(scales + 576, simd.negate(dmin))
    for quarter in range(4):  # 64 weights: 32 low nibbles, 32 high ones
        for part in range(2):
            q = lanes.columns_4(rows, at + 16 + quarter * 32 + part * 16)
            for_low = out + quarter * 1024 + part * 256
            lanes.put(for_low, q[0] & _NIBBLES)
            lanes.put(for_low + 64, q[1] & _NIBBLES)
            lanes.put(for_low + 128, q[2] & _NIBBLES)
            lanes.put(for_low + 192, q[3] & _NIBBLES)
            lanes.put(for_low + 512, (q[0] >> 4) & _NIBBLES)
            lanes.put(for_low + 576, (q[1] >> 4) & _NIBBLES)
            lanes.put(for_low + 640, (q[2] >> 4) & _NIBBLES)
            lanes.put(for_low + 704, (q[3] >> 4) & _NIBBLES)
    min_low = b & _SIX_BITS
    min_high = ((c >> 4) & _NIBBLES) | ((b >> 2) & 0x30303030)
    for part in range(2):  # for the high, then the low digits of the sums of x
        to_mins = out + 4096 + part * 256
        lanes.put(to_mins, min_low)
        lanes.put(to_mins + 64, min_high)
        lanes.put(to_mins + 128, zero)
        lanes.put(to_mins + 192, zero)


@kernel(inline=True)
def _put_6_bits(out, low, high):
    lanes.put(out, (low & _NIBBLES) | ((high & _TWO_BITS) << 4))


@kernel(inline=True)
def _put_16_of_6_bits(out, q, h, low_shift, high_shift):
    _put_6_bits(out, q[0] >> low_shift, h[0] >> high_shift)
    _put_6_bits(out + 64, q[1] >> low_shift, h[1] >> high_shift)
    _put_6_bits(out + 128, q[2] >> low_shift, h[2] >> high_shift)
    _put_6_bits(out + 192, q[3] >> low_shift, h[3] >> high_shift)


@kernel(inline=True)
def _signed_byte(v, i):
    return simd.shift_right_signed(v << (24 - 8 * i), 24)


@kernel(inline=True)
def _put_four_signed_scales(scales, d, integers):
    lanes.put(scales, d * simd.to_f32(_signed_byte(integers, 0)))
    lanes.put(scales + 64, d * simd.to_f32(_signed_byte(integers, 1)))
    lanes.put(scales + 128, d * simd.to_f32(_signed_byte(integers, 2)))
    lanes.put(scales + 192, d * simd.to_f32(_signed_byte(integers, 3)))


@kernel(inline=True)
def unpack_q6_k(rows, at, out, scales):
    """210 bytes: ql[128], qh[64], scales[16] signed, d."""
    d = _half_column(rows, at + 208)
    s = lanes.columns_4(rows, at + 192)
    _put_four_signed_scales(scales, d, s[0])
    _put_four_signed_scales(scales + 256, d, s[1])
    _put_four_signed_scales(scales + 512, d, s[2])
    _put_four_signed_scales(scales + 768, d, s[3])
    for half in range(2):  # 128 weights each
        for part in range(2):
            h = lanes.columns_4(rows, at + 128 + half * 32 + part * 16)
            base = out + half * 2048 + part * 256
            q = lanes.columns_4(rows, at + half * 64 + part * 16)
            _put_16_of_6_bits(base, q, h, 0, 0)
            _put_16_of_6_bits(base + 1024, q, h, 4, 4)
            q = lanes.columns_4(rows, at + half * 64 + 32 + part * 16)
            _put_16_of_6_bits(base + 512, q, h, 0, 2)
            _put_16_of_6_bits(base + 1536, q, h, 4, 6)
