"""Integer dot products."""

from llvmlite import ir
from numba.extending import intrinsic

from .emit import call, constant, i16, i32, shuffle, simple
from .level import HAS_VNNI, LEVEL
from .vectors import i32x16, u8x64


def _dot_vnni(builder, acc, unsigned, signed):
    args = [acc, unsigned, signed]
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", acc.type, args)


def _dot_vnni_by_halves(builder, acc, unsigned, signed):
    """Where vectors have 32 bytes: of one, or of two of them."""
    n = acc.type.count
    if n == 8:
        return _dot_vnni(builder, acc, unsigned, signed)
    halves = []
    for i in (0, 1):
        part = shuffle(builder, acc, acc, range(8 * i, 8 * i + 8))
        args = [shuffle(builder, x, x, range(32 * i, 32 * i + 32)) for x in (unsigned, signed)]
        halves.append(_dot_vnni(builder, part, *args))
    return shuffle(builder, *halves, range(16))


def _dot_words(builder, acc, unsigned, signed):
    """Even and odd bytes apart as 16-bit words, so that vpmaddwd cannot saturate."""
    words, eight = ir.VectorType(i16, 32), ir.Constant(ir.VectorType(i16, 32), [8] * 32)
    u, s = builder.bitcast(unsigned, words), builder.bitcast(signed, words)
    pairs = [
        (
            builder.and_(u, ir.Constant(words, [255] * 32)),
            builder.ashr(builder.shl(s, eight), eight),
        ),
        (builder.lshr(u, eight), builder.ashr(s, eight)),
    ]
    for left, right in pairs:
        halves = []
        for start in (0, 16):
            lanes = range(start, start + 16)
            args = [shuffle(builder, x, x, lanes) for x in (left, right)]
            result = ir.VectorType(i32, 8)
            halves.append(call(builder, "llvm.x86.avx2.pmadd.wd", result, args))
        acc = builder.add(acc, shuffle(builder, halves[0], halves[1], range(16)))
    return acc


def _dot_shifts(builder, acc, unsigned, signed):
    u, s = builder.bitcast(unsigned, i32x16.llvm), builder.bitcast(signed, i32x16.llvm)
    top = constant(i32x16, 24)
    for byte in range(4):
        shift = constant(i32x16, 8 * byte)
        left = builder.and_(builder.lshr(u, shift), constant(i32x16, 255))
        up = constant(i32x16, 24 - 8 * byte)
        right = builder.ashr(builder.shl(s, up), top)
        acc = builder.add(acc, builder.mul(left, right))
    return acc


_FORMS = {
    "avx512": _dot_vnni if HAS_VNNI else _dot_words,
    "avx2": _dot_vnni_by_halves if HAS_VNNI else _dot_words,
    "portable": _dot_shifts,
}

# emit_dot(builder, acc, unsigned, signed): the code of `dot_u8s8`, for other intrinsics; with VNNI of 32 bytes for such
# vectors too.
emit_dot = _FORMS[LEVEL]


@intrinsic
def dot_u8s8(typingctx, acc, unsigned, signed):
    """``acc[i] + sum(unsigned[4i + j] * signed[4i + j] for j in range(4))`` in int32, no saturation."""
    return simple(lambda builder, a, u, s: emit_dot(builder, a, u, s), i32x16, i32x16, u8x64, u8x64)
