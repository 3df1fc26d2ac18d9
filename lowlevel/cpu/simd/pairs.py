"""Vectors taken apart and put together lane by lane, and the angles of RoPE."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .addresses import pointer_at
from .emit import broadcast, call, f32, i32, i64, shuffle, simple
from .vectors import f32x16, i32x16


def _make_shuffle(lanes):
    @intrinsic
    def shuffled(typingctx, a, b):
        """Some of the 32 lanes of two vectors of float32."""
        return simple(lambda builder, x, y: shuffle(builder, x, y, lanes), f32x16, f32x16, f32x16)

    return shuffled


# Two vectors that hold pairs side by side, as their first and as their second halves; and back.
even_lanes, odd_lanes = (_make_shuffle(range(first, 32, 2)) for first in (0, 1))
zip_low, zip_high = (
    _make_shuffle([lane + 16 * (i % 2) for lane in lanes for i in (0, 1)])
    for lanes in (range(8), range(8, 16))
)


def _first_lanes(builder, n):
    """A mask of the first `n` of 16 lanes."""
    lanes = ir.Constant(i32x16.llvm, list(range(16)))
    return builder.icmp_signed("<", lanes, broadcast(builder, n, i32x16))


@intrinsic
def read_first_f32(typingctx, address, index, n, rest):
    """The first `n` (up to 16) float32 behind an address, nothing past them; `rest` in the other lanes."""

    def build(builder, a, i, n, rest):
        arguments = [
            pointer_at(builder, a, i, 4, f32x16.llvm),
            i32(4),
            _first_lanes(builder, n),
            broadcast(builder, rest, f32x16),
        ]
        return call(builder, "llvm.masked.load.v16f32.p0", f32x16.llvm, arguments)

    return simple(build, f32x16, types.int64, types.int64, types.int64, types.float32)


@intrinsic
def turn(typingctx, turns, n, position):
    """Angles of up to 16 pairs at a position, in 2**-32 turns from -2**31 on: i32x16.

    The upper half of the product with uint64 fractions of a turn behind address `turns`, of which `n` are read:
    whole turns, and with them everything a large position does to a float's precision, are gone.
    """

    def build(builder, address, n, position):
        wide = ir.VectorType(i64, 16)
        arguments = [
            builder.inttoptr(address, wide.as_pointer()),
            i32(8),
            _first_lanes(builder, n),
            ir.Constant(wide, [0] * 16),
        ]
        fractions = call(builder, "llvm.masked.load.v16i64.p0", wide, arguments)
        one = builder.insert_element(ir.Constant(wide, ir.Undefined), position, i32(0))
        positions = shuffle(builder, one, ir.Constant(wide, ir.Undefined), [0] * 16)
        product = builder.mul(fractions, positions)
        return builder.trunc(builder.lshr(product, ir.Constant(wide, [32] * 16)), i32x16.llvm)

    return simple(build, i32x16, types.int64, types.int64, types.int64)


@intrinsic(prefer_literal=True)
def stack_floats(typingctx, n):
    """The address of `n` float32 (a constant) on the stack, at a multiple of 64, contents undefined."""
    count = n.literal_value if isinstance(n, types.IntegerLiteral) else None
    if count is None:
        return None

    def codegen_(context, builder, sig, args):
        slot = cgutils.alloca_once(builder, ir.ArrayType(f32, count))
        slot.align = 64
        address = builder.ptrtoint(slot, i64)
        # No instruction: LLVM must not see that nothing but addresses in integers leads to the memory.
        kind = ir.FunctionType(i64, [i64])
        return builder.asm(kind, "", "=r,0,~{memory}", [address], side_effect=True)

    return signature(types.int64, n), codegen_
