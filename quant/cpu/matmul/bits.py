"""Fields of blocks in 16 lanes, as the formats' `unpack` functions pick them apart; see unpack.py."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from lowlevel.cpu.simd import emit

from . import lanes
from .layouts import LANES

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
    return lanes.as_ints(simd.bytes16(table, lanes.as_bytes(q & NIBBLES)))


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


# By four bits, what each of four bytes is: all ones or none.
_MASKS = np.array([sum(255 << 8 * bit for bit in range(4) if n >> bit & 1) for n in range(16)])
_MASKS = _MASKS.astype(np.uint32).view(np.int32)
_FIFTH_BITS = _MASKS & 0x10101010


@kernel(inline=True)
def _masks_looked_up(bits):
    return simd.lookup16(simd.load_i32x16(_MASKS, 0), bits)


@intrinsic
def _masks_compared(typingctx, bits):
    """vpshufb, vpand and vpcmpeqb, where looking up is five instructions."""

    def build(builder, bits):
        four = ir.VectorType(ir.IntType(8), 4 * LANES)
        lowest = builder.bitcast(bits, four)
        lowest = emit.shuffle(builder, lowest, lowest, [i // 4 * 4 for i in range(4 * LANES)])
        one_each = ir.Constant(four, [1, 2, 4, 8] * LANES)
        masks = builder.icmp_signed("==", builder.and_(lowest, one_each), one_each)
        return builder.bitcast(builder.sext(masks, four), lanes.ints.llvm)

    return emit.simple(build, lanes.ints, lanes.ints)


@kernel(inline=True)
def _fifth_bits_looked_up(high, first):
    return simd.lookup16(simd.load_i32x16(_FIFTH_BITS, 0), high >> first)


@kernel(inline=True)
def _fifth_bits_compared(high, first):
    return _masks_compared(high >> first) & 0x10101010


# byte_masks(bits): of bits 0 to 3 of each lane four bytes: all ones or none.
# _fifth_bits(high, first): bits `first` to `first` + 3 of each lane, each as the fifth bit of a byte.
byte_masks, _fifth_bits = (
    (_masks_compared, _fifth_bits_compared)
    if simd.LEVEL == "avx2"
    else (_masks_looked_up, _fifth_bits_looked_up)
)


@kernel(inline=True)
def put_five_bits(put, state, q, high):
    """32 weights from 16 bytes of nibbles, the low ones first, and their fifth bits, 32 a lane."""
    state = put(state, 0, (q[0] & NIBBLES) | _fifth_bits(high, 0))
    state = put(state, 64, (q[1] & NIBBLES) | _fifth_bits(high, 4))
    state = put(state, 128, (q[2] & NIBBLES) | _fifth_bits(high, 8))
    state = put(state, 192, (q[3] & NIBBLES) | _fifth_bits(high, 12))
    state = put(state, 256, ((q[0] >> 4) & NIBBLES) | _fifth_bits(high, 16))
    state = put(state, 320, ((q[1] >> 4) & NIBBLES) | _fifth_bits(high, 20))
    state = put(state, 384, ((q[2] >> 4) & NIBBLES) | _fifth_bits(high, 24))
    return put(state, 448, ((q[3] >> 4) & NIBBLES) | _fifth_bits(high, 28))
