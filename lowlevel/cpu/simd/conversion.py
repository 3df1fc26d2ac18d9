"""Making vectors, and converting between them."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .. import half
from .emit import broadcast, constant, f32, i16, i32, i64, shuffle, simple
from .level import LEVEL
from .vectors import Vec, f32x16, i32x16, u8x16, u8x64, u16x16


@intrinsic
def splat(typingctx, x):
    """`x` in all 16 lanes: f32x16 from a float, i32x16 from an int."""
    vec = f32x16 if isinstance(x, types.Float) else i32x16
    scalar = types.float32 if vec is f32x16 else types.int64
    return simple(lambda builder, v: broadcast(builder, v, vec), vec, scalar)


@intrinsic
def bytes_of(typingctx, low, high):
    """The eight bytes of `low` and the eight of `high`, int64 each: u8x16."""

    def build(builder, low, high):
        pair = ir.Constant(ir.VectorType(i64, 2), ir.Undefined)
        pair = builder.insert_element(pair, low, i32(0))
        return builder.bitcast(builder.insert_element(pair, high, i32(1)), u8x16.llvm)

    return simple(build, u8x16, types.int64, types.int64)


@intrinsic
def iota(typingctx):
    """i32x16 of 0, 1, ... 15."""
    return simple(lambda builder: ir.Constant(i32x16.llvm, list(range(16))), i32x16)


@intrinsic
def widen(typingctx, v):
    """Unsigned bytes or 16-bit values to i32 lanes."""
    wide = Vec("i32", v.lanes)
    return simple(lambda builder, x: builder.zext(x, wide.llvm), wide, v)


@intrinsic
def widen_signed(typingctx, v):
    """Signed bytes or 16-bit values, 16 lanes, to i32x16."""
    return simple(lambda builder, x: builder.sext(x, i32x16.llvm), i32x16, v)


@intrinsic
def narrow(typingctx, v):
    """The low bytes of i32 lanes, as u8x16."""
    return simple(lambda builder, x: builder.trunc(x, u8x16.llvm), u8x16, i32x16)


@intrinsic
def shift_right_signed(typingctx, v, n):
    """Arithmetic right shift of every lane by `n`."""

    def codegen_(context, builder, sig, args):
        return builder.ashr(args[0], broadcast(builder, args[1], sig.args[0]))

    return signature(v, v, types.int64), codegen_


@intrinsic
def to_f32(typingctx, v):
    """Signed i32 lanes to float32."""
    return simple(lambda builder, x: builder.sitofp(x, v.floats.llvm), v.floats, v)


@intrinsic
def to_i32(typingctx, v):
    """float32 lanes to int32, towards zero; callers keep them in range."""
    return simple(lambda builder, x: builder.fptosi(x, i32x16.llvm), i32x16, f32x16)


def _make_bitcast(result):
    @intrinsic
    def bitcast(typingctx, v):
        """The same bits as another vector type of the same size."""
        return simple(lambda builder, x: builder.bitcast(x, result.llvm), result, v)

    return bitcast


as_i32x16, as_u8x64 = (_make_bitcast(v) for v in (i32x16, u8x64))


@intrinsic
def as_floats(typingctx, v):
    """i32 lanes as the float32 lanes of the same bits."""
    return simple(lambda builder, x: builder.bitcast(x, v.floats.llvm), v.floats, v)


def _make_half_of(second):
    @intrinsic
    def half_of(typingctx, v):
        """One half of a vector of bytes: u8x64 -> u8x32 -> u8x16."""
        lanes = v.lanes // 2
        part = range(second * lanes, (1 + second) * lanes)
        return simple(lambda builder, x: shuffle(builder, x, x, part), Vec("u8", lanes), v)

    return half_of


lower_half, upper_half = _make_half_of(0), _make_half_of(1)


@intrinsic
def join(typingctx, a, b):
    """Two vectors of bytes, one after the other: u8x16 -> u8x32 -> u8x64."""
    lanes = 2 * a.lanes
    return simple(
        lambda builder, x, y: shuffle(builder, x, y, range(lanes)), Vec("u8", lanes), a, a
    )


# (to float32, from float32)
_HALF = half.native if LEVEL != "portable" else half.by_integers
# The code of `half_to_f32` and `bfloat_to_f32` on vectors, for other intrinsics.
emit_half_to_f32 = _HALF[0]


def emit_bfloat_to_f32(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    wide = builder.zext(v, i32x16.llvm)
    return builder.bitcast(builder.shl(wide, constant(i32x16, 16)), f32x16.llvm)


@intrinsic
def half_to_f32(typingctx, x):
    """IEEE half bits to float32: a uint16 scalar or u16 lanes (exact)."""
    if isinstance(x, Vec):
        return simple(_HALF[0], x.floats, x)
    return simple(_HALF[0], types.float32, types.uint16)


@intrinsic
def splat_half(typingctx, x):
    """IEEE half bits, a uint16 scalar, as float32 in all 16 lanes (exact)."""

    def build(builder, bits):
        if LEVEL == "portable":
            return broadcast(builder, _HALF[0](builder, bits), f32x16)
        # Repeated before the conversion: the scalar one would wait for the register's old value.
        return _HALF[0](builder, broadcast(builder, bits, u16x16))

    return simple(build, f32x16, types.uint16)


@intrinsic
def f32_to_half(typingctx, x):
    """float32 to IEEE half bits, nearest even: scalar -> uint16, f32x16 -> u16x16."""
    if isinstance(x, Vec):
        return simple(_HALF[1], u16x16, f32x16)
    return simple(_HALF[1], types.uint16, types.float32)


@intrinsic
def bfloat_to_f32(typingctx, x):
    """bfloat16 bits to float32 (exact): a uint16 scalar or u16x16."""
    if isinstance(x, Vec):
        return simple(emit_bfloat_to_f32, f32x16, u16x16)

    def build_scalar(builder, v):
        return builder.bitcast(builder.shl(builder.zext(v, i32), i32(16)), f32)

    return simple(build_scalar, types.float32, types.uint16)


def _emit_f32_to_bfloat(builder, v):
    """Nearest even; a NaN stays one, made quiet. Lanes or a scalar."""
    vector = isinstance(v.type, ir.VectorType)
    ints = i32x16.llvm if vector else i32
    const = (lambda value: constant(i32x16, value)) if vector else i32
    bits = builder.bitcast(v, ints)
    odd = builder.and_(builder.lshr(bits, const(16)), const(1))
    rounded = builder.add(bits, builder.add(odd, const(0x7FFF)))
    quiet = builder.or_(bits, const(0x400000))
    result = builder.select(builder.fcmp_unordered("uno", v, v), quiet, rounded)
    return builder.trunc(builder.lshr(result, const(16)), u16x16.llvm if vector else i16)


@intrinsic
def f32_to_bfloat(typingctx, x):
    """float32 to bfloat16 bits, nearest even: scalar -> uint16, f32x16 -> u16x16."""
    if isinstance(x, Vec):
        return simple(_emit_f32_to_bfloat, u16x16, f32x16)
    return simple(_emit_f32_to_bfloat, types.uint16, types.float32)


@intrinsic
def extract(typingctx, v, lane):
    """One lane as a scalar; `lane` may be a variable."""
    scalar = {"f32": types.float32, "i32": types.int32, "u8": types.uint8, "u16": types.uint16}
    return simple(
        lambda builder, x, i: builder.extract_element(x, builder.trunc(i, i32)),
        scalar[v.kind],
        v,
        types.int64,
    )
