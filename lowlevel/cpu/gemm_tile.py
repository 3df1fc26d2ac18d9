"""The register tile under both products of attention: C += A @ B for a few rows of C.

One call keeps ``m`` rows by ``16 * n_vectors`` columns of C in registers while it walks the inner
dimension. A is read one element at a time and broadcast (an fma with a broadcast memory operand),
B one vector at a time, so neither has to be packed::

    C[i, j] (+)= sum over k of A[i * a_row + k * a_step] * B[k * b_step + j]

All strides count float32 elements; addresses are bytes. The caller owns the bounds: `B` and `C`
are touched for all ``16 * n_vectors`` columns.

``b_type`` is that of B's elements, which may have 16 bits (b_step counts them); all else is float32.

With ``pairs=True`` every 32-bit item of A and B is a pair of bfloat16, neighbours along k, and `depth`
counts pairs; C stays float32 (see bfloat.py).

`TILE_ROWS` x `TILE_VECTORS` is what fits the registers: 8 x 2 of 32 on AVX-512, 4 x 1 (pairs of
ymm) of 16 on AVX2. More rows did not help: 16 accumulators cover the fma latency, and the loads
(10 for 16 fma) stay below one per fma.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from . import bfloat, simd
from .simd import emit

TILE_ROWS, TILE_VECTORS = (8, 2) if simd.LEVEL == "avx512" else (4, 1)
TILE_COLUMNS = 16 * TILE_VECTORS

_i64, _f32 = ir.IntType(64), ir.FloatType()
_vector, _words = ir.VectorType(_f32, 16), ir.VectorType(ir.IntType(16), 16)
_UNROLL = 4


def _pointer(builder, byte_address, element_offset, llvm_type, item_bytes=4):
    address = builder.add(byte_address, builder.mul(element_offset, _i64(item_bytes)))
    return builder.inttoptr(address, llvm_type.as_pointer())


def _broadcast(builder, scalar):
    one = builder.insert_element(ir.Constant(_vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
    return builder.shuffle_vector(one, ir.Constant(_vector, ir.Undefined), zeros)


def _fma(builder, a, b, c):
    return emit.call(builder, "llvm.fma.v16f32", _vector, [a, b, c])


def _dot_pairs(builder, a, b, c):
    return bfloat.emit_dot_pairs(builder, c, a, b)


# How 16 elements of B become floats: LLVM type, bytes of an element, conversion.
_B_TYPES = {
    "float32": (_vector, 4, lambda builder, x: x),
    "float16": (_words, 2, simd.emit_half_to_f32),
    "bfloat16": (_words, 2, simd.emit_bfloat_to_f32),
}


def make_gemm_tile(m: int, n_vectors: int, pairs: bool = False, b_type: str = "float32") -> Any:
    """The intrinsic for `m` rows by `n_vectors` vectors of C."""

    b_vector, b_bytes, widen = _B_TYPES[b_type]
    multiply_add = _dot_pairs if pairs else _fma

    tile = [(i, v) for i in range(m) for v in range(n_vectors)]

    def emit_loop(builder, a, a_row, a_step, b, b_step, depth, start):
        """Walk k = 0..depth-1, `_UNROLL` at a time, then one at a time; returns the sums."""

        def one_k(builder, k, sums):
            b_offset = builder.mul(k, b_step)
            b_k = []
            for v in range(n_vectors):
                at = builder.add(b_offset, _i64(16 * v))
                pointer = _pointer(builder, b, at, b_vector, b_bytes)
                b_k.append(widen(builder, builder.load(pointer, align=b_bytes)))
            a_offset = builder.mul(k, a_step)
            result = []
            for i in range(m):
                offset = builder.add(a_offset, builder.mul(a_row, _i64(i)))
                x = _broadcast(builder, builder.load(_pointer(builder, a, offset, _f32), align=4))
                for v in range(n_vectors):
                    result.append(multiply_add(builder, x, b_k[v], sums[i * n_vectors + v]))
            return result

        def loop(first, last, step, sums):
            entry = builder.block
            head = builder.append_basic_block("tile.head")
            body = builder.append_basic_block("tile.body")
            done = builder.append_basic_block("tile.done")
            builder.branch(head)
            builder.position_at_end(head)
            k = builder.phi(_i64)
            k.add_incoming(first, entry)
            carried = [builder.phi(_vector) for _ in tile]
            for phi, value in zip(carried, sums, strict=True):
                phi.add_incoming(value, entry)
            builder.cbranch(builder.icmp_signed("<", k, last), body, done)
            builder.position_at_end(body)
            values = list(carried)
            for j in range(step):
                values = one_k(builder, builder.add(k, _i64(j)), values)
            k.add_incoming(builder.add(k, _i64(step)), builder.block)
            for phi, value in zip(carried, values, strict=True):
                phi.add_incoming(value, builder.block)
            builder.branch(head)
            builder.position_at_end(done)
            return list(carried)

        whole = builder.and_(depth, _i64(-_UNROLL))
        sums = loop(_i64(0), whole, _UNROLL, start)
        return loop(whole, depth, 1, sums)

    def define(function):
        """The tile as a function of its own: its callers share one, which halves compile time."""
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block())
        a, a_row, a_step, b, b_step, c, c_row, depth, accumulate = function.args
        zero = ir.Constant(_vector, [0.0] * 16)
        c_pointers = [
            _pointer(
                builder,
                c,
                builder.add(builder.mul(c_row, _i64(i)), _i64(16 * v)),
                _vector,
            )
            for i, v in tile
        ]
        sums = emit_loop(builder, a, a_row, a_step, b, b_step, depth, [zero] * len(tile))
        # C is read after the loop, not before: its lines travel while the sums are made.
        with builder.if_else(accumulate) as (then, otherwise):
            with then:
                for pointer, value in zip(c_pointers, sums, strict=True):
                    old = builder.load(pointer, align=4)
                    builder.store(builder.fadd(old, value), pointer, align=4)
            with otherwise:
                for pointer, value in zip(c_pointers, sums, strict=True):
                    builder.store(value, pointer, align=4)
        builder.ret_void()

    @intrinsic
    def gemm_tile(typingctx, a, a_row, a_step, b, b_step, c, c_row, depth, accumulate):
        def codegen(context, builder, sig, args):
            function_type = ir.FunctionType(ir.VoidType(), [_i64] * 8 + [ir.IntType(1)])
            kind = "pairs" if pairs else b_type
            name = f"kqcap_gemm_tile_{m}x{n_vectors}_{kind}"
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            if function.is_declaration:
                define(function)
            builder.call(function, args)
            return context.get_dummy_value()

        i64 = types.int64
        return signature(types.void, i64, i64, i64, i64, i64, i64, i64, i64, types.boolean), codegen

    return gemm_tile
