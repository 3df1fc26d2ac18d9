"""IEEE half precision in LLVM IR, for a scalar or a vector: with the CPU's conversions or without.

Without F16C, LLVM calls library routines that are not there in Numba's process (it crashes), so
the portable form does it with integers. `native` and `by_integers` are pairs of
``build(builder, value)``: half bits (i16) to float, and float to half bits, ties to even.
"""

from llvmlite import ir

_i16, _i32, _half, _f32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()


def _like(value, element):
    """The type of `value` with another element type: a vector of the same width, or a scalar."""
    if isinstance(value.type, ir.VectorType):
        return ir.VectorType(element, value.type.count)
    return element


def _constants(value):
    """A maker of i32 constants as wide as `value`."""
    kind = _like(value, _i32)
    if isinstance(kind, ir.VectorType):
        return lambda number: ir.Constant(kind, [number] * kind.count)
    return kind


def _to_f32_native(builder, x):
    return builder.fpext(builder.bitcast(x, _like(x, _half)), _like(x, _f32))


def _from_f32_native(builder, x):
    return builder.bitcast(builder.fptrunc(x, _like(x, _half)), _like(x, _i16))


def _to_f32_integers(builder, x):
    ints, floats, const = _like(x, _i32), _like(x, _f32), _constants(x)
    x = builder.zext(x, ints)
    magnitude = builder.shl(builder.and_(x, const(0x7FFF)), const(13))
    rebias = const((127 - 15) << 23)
    normal = builder.add(magnitude, rebias)
    special = builder.add(normal, rebias)  # inf and NaN: the largest exponent again
    least = const((127 - 14) << 23)  # 2**-14: subnormals count from there
    subnormal = builder.fsub(
        builder.bitcast(builder.add(magnitude, least), floats), builder.bitcast(least, floats)
    )
    is_special = builder.icmp_unsigned(">=", magnitude, const(0x7C00 << 13))
    is_subnormal = builder.icmp_unsigned("<", magnitude, const(0x0400 << 13))
    bits = builder.select(is_special, special, normal)
    bits = builder.select(is_subnormal, builder.bitcast(subnormal, ints), bits)
    sign = builder.shl(builder.and_(x, const(0x8000)), const(16))
    return builder.bitcast(builder.or_(bits, sign), floats)


def _from_f32_integers(builder, x):
    ints, floats, const = _like(x, _i32), _like(x, _f32), _constants(x)
    bits = builder.bitcast(x, ints)
    magnitude = builder.and_(bits, const(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, const(13)), const(1))
    rounded = builder.add(magnitude, builder.add(odd, const(0xFFF - ((127 - 15) << 23))))
    normal = builder.lshr(rounded, const(13))
    # The sum with 1/2 leaves the subnormal's bits, rounded to even, at the end of the mantissa.
    one_half = const(126 << 23)
    total = builder.fadd(builder.bitcast(magnitude, floats), builder.bitcast(one_half, floats))
    subnormal = builder.sub(builder.bitcast(total, ints), one_half)
    is_subnormal = builder.icmp_unsigned("<", magnitude, const((127 - 14) << 23))
    is_large = builder.icmp_unsigned(">=", magnitude, const((127 + 16) << 23))
    is_nan = builder.icmp_unsigned(">", magnitude, const(0x7F800000))
    result = builder.select(is_subnormal, subnormal, normal)
    result = builder.select(is_large, builder.select(is_nan, const(0x7E00), const(0x7C00)), result)
    sign = builder.and_(builder.lshr(bits, const(16)), const(0x8000))
    return builder.trunc(builder.or_(result, sign), _like(x, _i16))


native = (_to_f32_native, _from_f32_native)
by_integers = (_to_f32_integers, _from_f32_integers)
