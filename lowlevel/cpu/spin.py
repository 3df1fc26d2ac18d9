"""Waiting for other threads without going to sleep, for the few microseconds that waking up would cost more."""

import platform

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .jit import kernel
from .simd import emit

# About a tenth of a millisecond; a microsecond or two; and what a caller needs to get from the bell into
# its kernel.
_PAUSES, _LAST_PAUSES, _BEGIN_PAUSES = 4000, 50, 200
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


@intrinsic
def _value(typingctx, address):
    """The int64 at an address, which another thread may write now."""

    def build(builder, address):
        pointer = builder.inttoptr(address, emit.i64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return emit.simple(build, types.int64, types.int64)


@intrinsic
def _set(typingctx, address):
    """Write 1 there, after all that this thread has written before."""

    def codegen_(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], emit.i64.as_pointer())
        builder.store_atomic(emit.i64(1), pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64), codegen_


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
        while i < n and _value(at + 8 * i) != 0:
            i += 1
        if i == n:
            for _ in range(_LAST_PAUSES):
                _pause()
            return True
        _pause()
    return False


@kernel
def rest(flags, i, bell):
    """Set a flag, then wait a little for the bell to ring; whether it has.

    Without the GIL as well: the flag is not seen before this thread has given it back. And after the bell
    a moment longer: the caller who rang it holds the GIL until it computes.

    Parameters
    ----------
    flags : numpy.ndarray of int64
    i : int
        Which flag.
    bell : numpy.ndarray of int64
        One element, which every call changes.
    """
    last = bell[0]
    _set(simd.address(flags) + 8 * i)
    at = simd.address(bell)
    for _ in range(_PAUSES):
        if _value(at) != last:
            for _ in range(_BEGIN_PAUSES):
                _pause()
            return True
        _pause()
    return False
