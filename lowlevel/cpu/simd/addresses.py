"""Operands by address, for arbitrary strides.

An int64 address in bytes, an index in elements (even negative ones: nothing wraps around).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .emit import broadcast, call, f32, i8, i16, i32, i64, shuffle, simple
from .vectors import f32x16, i32x16, u8x16, u8x32, u8x64, u16x16


def pointer_at(
    builder: ir.IRBuilder, address: Any, index: Any, item_bytes: int, llvm_type: ir.Type
) -> ir.Value:
    byte_address = builder.add(address, builder.mul(index, i64(item_bytes)))
    return builder.inttoptr(byte_address, llvm_type.as_pointer())


def _make_read(result, llvm_type, item_bytes):
    @intrinsic
    def read(typingctx, address, index):
        """`result` at element `index` behind an address."""

        def build(builder, a, i):
            return builder.load(pointer_at(builder, a, i, item_bytes, llvm_type), align=item_bytes)

        return simple(build, result, types.int64, types.int64)

    return read


def _make_write(value_type, llvm_type, item_bytes):
    @intrinsic
    def write(typingctx, address, index, value):
        """Store `value` at element `index` behind an address."""

        def codegen_(context, builder, sig, args):
            pointer = pointer_at(builder, args[0], args[1], item_bytes, llvm_type)
            builder.store(args[2], pointer, align=item_bytes)
            return context.get_dummy_value()

        return signature(types.void, types.int64, types.int64, value_type), codegen_

    return write


read_f32, read_f32x16 = _make_read(types.float32, f32, 4), _make_read(f32x16, f32x16.llvm, 4)
write_f32, write_f32x16 = _make_write(types.float32, f32, 4), _make_write(f32x16, f32x16.llvm, 4)


def make_read_at(result: Any, llvm_type: ir.Type) -> Any:
    @intrinsic
    def read_at(typingctx, address):
        """The value behind an address in bytes; any alignment."""
        return simple(
            lambda builder, a: builder.load(builder.inttoptr(a, llvm_type.as_pointer()), align=1),
            result,
            types.int64,
        )

    return read_at


read_u8, read_u16 = make_read_at(types.uint8, i8), make_read_at(types.uint16, i16)
read_i32, read_i64 = make_read_at(types.int32, i32), make_read_at(types.int64, i64)
read_u8x16, read_u8x32, read_u8x64 = (make_read_at(v, v.llvm) for v in (u8x16, u8x32, u8x64))
read_u16x16 = make_read_at(u16x16, u16x16.llvm)


def _make_write_at(piece_bytes):
    @intrinsic
    def write_at(typingctx, address, value):
        def codegen_(context, builder, sig, args):
            address, value = args
            if piece_bytes is None or not isinstance(value.type, ir.VectorType):
                pointer = builder.inttoptr(address, value.type.as_pointer())
                builder.store(value, pointer, align=1)
                return context.get_dummy_value()
            flag = builder.module.add_metadata([i32(1)])
            lanes, size = value.type.count, context.get_abi_sizeof(value.type)
            n_pieces = max(1, size // piece_bytes)
            for i in range(n_pieces):
                start = i * lanes // n_pieces
                piece = shuffle(builder, value, value, range(start, start + lanes // n_pieces))
                at = builder.add(address, i64(i * size // n_pieces))
                pointer = builder.inttoptr(at, piece.type.as_pointer())
                instruction = builder.store(piece, pointer, align=size // n_pieces)
                instruction.set_metadata("nontemporal", flag)
            return context.get_dummy_value()

        return signature(types.void, types.int64, value), codegen_

    return write_at


# write_at(address, value): a scalar or vector to an address in bytes; any alignment.
write_at = _make_write_at(None)
# stream_at(address, vector): past the caches; the same rule as for stream: a multiple of the
# vector's size, or the process dies, and stream_fence() at the end. Scalars are written as usual.
stream_at = _make_write_at(64)
# stream_pieces_at(address, vector): the same in pieces of 16 bytes, so that multiples of 16 will do.
stream_pieces_at = _make_write_at(16)


@intrinsic
def spill(typingctx, v):
    """Write a vector to the stack and return its address.

    Parts of it that are read from there (read_f32, read_u8x16) cost a load each, where taking them
    out of a register costs one or two shuffles, of which CPUs do fewer at a time.
    """

    def codegen_(context, builder, sig, args):
        slot = cgutils.alloca_once(builder, args[0].type)
        slot.align = 64
        builder.store(args[0], slot, align=64)
        address = builder.ptrtoint(slot, i64)
        # No instruction, but LLVM must not see through the memory, or it would shuffle after all.
        kind = ir.FunctionType(i64, [i64])
        return builder.asm(kind, "", "=r,0,~{memory}", [address], side_effect=True)

    return signature(types.int64, v), codegen_


@intrinsic
def write_first_f32(typingctx, address, index, value, n):
    """Set the first `n` (up to 16) float32 of an f32x16 behind an address, nothing past them."""

    def build(builder, a, i, v, count):
        pointer = pointer_at(builder, a, i, 4, f32x16.llvm)
        lanes = ir.Constant(i32x16.llvm, list(range(16)))
        mask = builder.icmp_signed("<", lanes, broadcast(builder, count, i32x16))
        call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), [v, pointer, i32(4), mask])
        return ir.Constant(i8.as_pointer(), None)

    return simple(build, types.void, types.int64, types.int64, f32x16, types.int64)


def emit_prefetch(builder: ir.IRBuilder, address: Any) -> ir.Value:
    """The code of `prefetch`, for other intrinsics."""
    pointer = builder.inttoptr(address, i8.as_pointer())
    arguments = [pointer, i32(0), i32(2), i32(1)]  # for reading, into L2, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
    return ir.Constant(i8.as_pointer(), None)


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address in bytes; any address will do."""
    return simple(emit_prefetch, types.void, types.int64)


@intrinsic
def call_fill(typingctx, function, source, row_stride, n_rows, n_columns, destination, stride):
    """Call a KV fill (see lowlevel/attention/kv_source.py) by its address; every argument is an int64."""

    def codegen_(context, builder, sig, args):
        byte_pointer, float_pointer = i8.as_pointer(), f32.as_pointer()
        arguments = [byte_pointer, i64, i64, i64, float_pointer, i64]
        function_type = ir.FunctionType(ir.VoidType(), arguments)
        target = builder.inttoptr(args[0], function_type.as_pointer())
        source, row_stride, n_rows, n_columns, destination, stride = args[1:]
        builder.call(
            target,
            [
                builder.inttoptr(source, byte_pointer),
                row_stride,
                n_rows,
                n_columns,
                builder.inttoptr(destination, float_pointer),
                stride,
            ],
        )
        return context.get_dummy_value()

    return signature(types.void, *[types.int64] * 7), codegen_
