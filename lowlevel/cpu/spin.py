"""Waiting for other threads without going to sleep, for the few microseconds that waking up would cost more."""

import platform

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .jit import kernel
from .simd import emit

# About a tenth of a millisecond, and a microsecond or two.
_PAUSES, _LAST_PAUSES = 4000, 50
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


@intrinsic
def _is_set(typingctx, flag):
    """Whether the int64 at an address, which another thread may write now, is not 0."""

    def build(builder, address):
        pointer = builder.inttoptr(address, emit.i64.as_pointer())
        value = builder.load_atomic(pointer, "monotonic", 8)
        return builder.icmp_unsigned("!=", value, emit.i64(0))

    return emit.simple(build, types.boolean, types.int64)


@intrinsic
def _pause(typingctx):
    """Tell the CPU that this is a waiting loop."""

    def codegen_(context, builder, sig, args):
        if _IS_X86:
            emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen_


@kernel
def wait_for(flags):
    """Wait a little until each of an array of int64 is set; whether they all are.

    Without the GIL, so that those who set them need not ask for it, and a moment longer, so that they may
    have given it back.
    """
    at, n, i = simd.address(flags), flags.size, 0
    for _ in range(_PAUSES):
        while i < n and _is_set(at + 8 * i):
            i += 1
        if i == n:
            for _ in range(_LAST_PAUSES):
                _pause()
            return True
        _pause()
    return False
