"""Fields of blocks in 16 lanes, as the formats' `unpack` functions pick them apart; see unpack.py."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes

# Masks of four bytes.
BYTES_1 = 0x01010101
BYTES_4 = 0x04040404
NIBBLES = 0x0F0F0F0F
HIGH_NIBBLES = 0xF0F0F0F0
TWO_BITS = 0x03030303
SIX_BITS = 0x3F3F3F3F
TOP_BITS = 0x80808080


@kernel(inline=True)
def half_column(rows, position):
    return simd.half_to_f32(lanes.column_u16(rows, position))


@kernel(inline=True)
def low_half(v):
    return simd.half_to_f32(lanes.low_halves(v))


@kernel(inline=True)
def byte(v, i):
    """Byte `i` of every dword, as an int32 lane."""
    return (v >> (8 * i)) & 255


@kernel(inline=True)
def put_low_nibbles(put, state, offset, q):
    """16 weights, four vectors."""
    state = put(state, offset, q[0] & NIBBLES)
    state = put(state, offset + 64, q[1] & NIBBLES)
    state = put(state, offset + 128, q[2] & NIBBLES)
    return put(state, offset + 192, q[3] & NIBBLES)


@kernel(inline=True)
def put_high_nibbles(put, state, offset, q):
    state = put(state, offset, (q[0] >> 4) & NIBBLES)
    state = put(state, offset + 64, (q[1] >> 4) & NIBBLES)
    state = put(state, offset + 128, (q[2] >> 4) & NIBBLES)
    return put(state, offset + 192, (q[3] >> 4) & NIBBLES)


@kernel(inline=True)
def _looked_up(table, q):
    return simd.as_i32x16(simd.bytes16(table, simd.as_u8x64(q & NIBBLES)))


@kernel(inline=True)
def put_looked_up(put, state, offset, table, q):
    """32 weights from 16 bytes, eight vectors: those of the low nibbles, then of the high ones."""
    state = put(state, offset, _looked_up(table, q[0]))
    state = put(state, offset + 64, _looked_up(table, q[1]))
    state = put(state, offset + 128, _looked_up(table, q[2]))
    state = put(state, offset + 192, _looked_up(table, q[3]))
    state = put(state, offset + 256, _looked_up(table, q[0] >> 4))
    state = put(state, offset + 320, _looked_up(table, q[1] >> 4))
    state = put(state, offset + 384, _looked_up(table, q[2] >> 4))
    return put(state, offset + 448, _looked_up(table, q[3] >> 4))
