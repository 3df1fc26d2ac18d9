"""Pairs of bfloat16 in 32-bit lanes, and their dot product (AVX512_BF16).

The instruction multiplies two pairs a lane and adds both products to a float32: 32 multiply-adds,
twice what a float32 fma does. The first of a pair lies in the low half. It rounds to nearest even
and takes subnormals for zero.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .simd import emit

AVAILABLE = simd.LEVEL == "avx512" and "avx512bf16" in simd.FEATURES


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


_bfloats = ir.VectorType(_BFloat(), 32)
_words = simd.u16x32.llvm


def emit_dot_pairs(builder: ir.IRBuilder, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """LLVM code of ``total + a[0] * b[0] + a[1] * b[1]`` lane by lane; a, b: any 64-byte vectors."""
    pairs = [builder.bitcast(v, _bfloats) for v in (a, b)]
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return emit.call(builder, name, simd.f32x16.llvm, [total, *pairs])


def _rounded(builder, first, second):
    """The lanes of `first`, then of `second`, as 32 bfloat16."""
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return builder.bitcast(emit.call(builder, name, _bfloats, [second, first]), _words)


@intrinsic
def round_row(typingctx, first, second):
    """32 floats in order, rounded: u16x32."""
    return emit.simple(_rounded, simd.u16x32, simd.f32x16, simd.f32x16)


@intrinsic
def round_pairs(typingctx, first, second):
    """Lane i of `first` and of `second`, rounded, in lane i: i32x16."""

    def build(builder, first, second):
        words = _rounded(builder, first, second)
        lanes = [i // 2 + 16 * (i % 2) for i in range(32)]
        return builder.bitcast(emit.shuffle(builder, words, words, lanes), simd.i32x16.llvm)

    return emit.simple(build, simd.i32x16, simd.f32x16, simd.f32x16)


@intrinsic
def bits_of(typingctx, x):
    """A float32 as the int64 of its bits."""

    def build(builder, x):
        return builder.zext(builder.bitcast(x, ir.IntType(32)), ir.IntType(64))

    return emit.simple(build, types.int64, types.float32)
