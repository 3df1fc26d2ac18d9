"""Float arithmetic, selection, and reductions over lanes."""

from numba.core import types
from numba.extending import intrinsic

from .emit import call, f32, i16, i32, shuffle, simple
from .vectors import f32x16, mask16


@intrinsic
def fma(typingctx, a, b, c):
    """``a * b + c`` with one rounding."""
    return simple(
        lambda builder, *v: call(builder, "llvm.fma.v16f32", f32x16.llvm, v),
        f32x16, f32x16, f32x16, f32x16,
    )  # fmt: skip


@intrinsic
def multiply_add(typingctx, a, b, c):
    """``a * b + c``: fused where the CPU can, else rounded twice. Exact products: the same bits."""
    name = f"llvm.fmuladd.v{a.lanes}f32"
    return simple(lambda builder, *v: call(builder, name, a.llvm, v), a, a, a, a)


@intrinsic
def divide(typingctx, a, b):
    """``a / b`` lane by lane."""
    return simple(lambda builder, x, y: builder.fdiv(x, y), f32x16, f32x16, f32x16)


@intrinsic
def negate(typingctx, v):
    """Flip the sign of every float lane."""
    return simple(lambda builder, x: builder.fneg(x), v, v)


@intrinsic
def absolute(typingctx, v):
    """Clear the sign of every float lane."""
    return simple(
        lambda builder, x: call(builder, "llvm.fabs.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def square_root(typingctx, v):
    """The correctly rounded square root of every lane."""
    return simple(
        lambda builder, x: call(builder, "llvm.sqrt.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def round_even(typingctx, v):
    """Round every lane to the nearest integer, ties to even."""
    return simple(
        lambda builder, x: call(builder, "llvm.rint.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`."""
    return simple(lambda builder, m, x, y: builder.select(m, x, y), a, a.mask, a, a)


@intrinsic
def maximum(typingctx, a, b):
    """Lane by lane ``a if a > b else b``, of f32x16 or i32x16.

    A NaN in `b` stays, a NaN in `a` is dropped.
    """

    def build(builder, x, y):
        compare = builder.fcmp_ordered if a.kind == "f32" else builder.icmp_signed
        return builder.select(compare(">", x, y), x, y)

    return simple(build, a, a, a)


@intrinsic
def minimum(typingctx, a, b):
    """Lane by lane ``a if a < b else b``, of f32x16 (NaN as in `maximum`) or i32x16."""

    def build(builder, x, y):
        compare = builder.fcmp_ordered if a.kind == "f32" else builder.icmp_signed
        return builder.select(compare("<", x, y), x, y)

    return simple(build, a, a, a)


@intrinsic
def any_set(typingctx, mask):
    """True if any lane of a mask is set."""

    def build(builder, m):
        return builder.icmp_unsigned("!=", builder.bitcast(m, i16), i16(0))

    return simple(build, types.boolean, mask16)


@intrinsic
def sum_lanes(typingctx, v):
    """Sum of 16 lanes, pairwise (f32x16 -> float32, i32x16 -> int32)."""
    is_float = v.kind == "f32"

    def build(builder, x):
        lanes = 16
        while lanes > 1:
            lanes //= 2
            low = shuffle(builder, x, x, range(lanes))
            high = shuffle(builder, x, x, range(lanes, 2 * lanes))
            x = builder.fadd(low, high) if is_float else builder.add(low, high)
        return builder.extract_element(x, i32(0))

    return simple(build, types.float32 if is_float else types.int32, v)


@intrinsic
def max_lanes(typingctx, v):
    """Largest of 16 lanes (f32x16: a NaN lane is ignored unless all are NaN)."""
    if v.kind == "f32":
        name, scalar = "llvm.vector.reduce.fmax.v16f32", types.float32
    else:
        name, scalar = "llvm.vector.reduce.smax.v16i32", types.int32
    kind = f32 if v.kind == "f32" else i32
    return simple(lambda builder, x: call(builder, name, kind, [x]), scalar, v)


@intrinsic
def float_of(typingctx, bits):
    """The float32 of an int32's bits."""
    return simple(lambda builder, x: builder.bitcast(x, f32), types.float32, types.int32)
