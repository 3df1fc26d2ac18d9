"""What threads tell each other by memory: int64 that one writes while another reads."""

import platform

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import emit

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


def _place(builder, address):
    return builder.inttoptr(address, emit.i64.as_pointer())


@intrinsic
def value(typingctx, address):
    """The int64 at an address, which another thread may write now."""

    def build(builder, address):
        return builder.load_atomic(_place(builder, address), "seq_cst", 8)

    return emit.simple(build, types.int64, types.int64)


@intrinsic
def add(typingctx, address, amount):
    """Add to the int64 at an address; what it was. All threads see such changes in one order."""

    def build(builder, address, amount):
        return builder.atomic_rmw("add", _place(builder, address), amount, "seq_cst")

    return emit.simple(build, types.int64, types.int64, types.int64)


@intrinsic
def put(typingctx, address, new):
    """Write the int64 at an address, after all that this thread has written before."""

    def codegen_(context, builder, sig, args):
        builder.store_atomic(args[1], _place(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen_


@intrinsic
def pause(typingctx):
    """Tell the CPU that this is a waiting loop."""

    def codegen_(context, builder, sig, args):
        if _IS_X86:
            emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen_
