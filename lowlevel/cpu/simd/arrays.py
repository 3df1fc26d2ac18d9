"""Loads and stores of arrays, and tasks from a shared counter."""

from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .emit import element_pointer, i32, i64
from .vectors import f32x16, i32x16, u8x16, u8x32, u8x64, u16x16


def _make_load(vec):
    @intrinsic
    def load(typingctx, array, index):
        """`vec` from ``array[index : index + lanes]`` of a C-contiguous array; any alignment."""

        def codegen_(context, builder, sig, args):
            pointer = element_pointer(context, builder, sig.args[0], *args, vec.llvm)
            return builder.load(pointer, align=1)

        return signature(vec, array, types.int64), codegen_

    return load


load_f32x16, load_i32x16 = _make_load(f32x16), _make_load(i32x16)
load_u16x16 = _make_load(u16x16)
load_u8x16, load_u8x32, load_u8x64 = _make_load(u8x16), _make_load(u8x32), _make_load(u8x64)


def _make_store(align, streaming):
    @intrinsic
    def store(typingctx, array, index, value):
        def codegen_(context, builder, sig, args):
            array_value, index_value, vector = args
            pointer = element_pointer(
                context, builder, sig.args[0], array_value, index_value, vector.type
            )
            instruction = builder.store(vector, pointer, align=align)
            if streaming:
                flag = builder.module.add_metadata([i32(1)])
                instruction.set_metadata("nontemporal", flag)
            return context.get_dummy_value()

        return signature(types.void, array, types.int64, value), codegen_

    return store


# store(array, index, vector): any alignment.
store = _make_store(1, False)
# stream(array, index, vector): past the caches. The address MUST be a multiple of the vector's
# size (64 bytes for f32x16, 32 for u16x16), or the process dies; call stream_fence() at the end.
stream = _make_store(64, True)
stream_half = _make_store(32, True)


@intrinsic
def stream_fence(typingctx):
    """Make streamed stores visible before anything after it."""

    def codegen_(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return signature(types.void), codegen_


@intrinsic
def address(typingctx, array):
    """The array's data pointer as int64."""

    def codegen_(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, i64)

    return signature(types.int64, array), codegen_


@intrinsic
def take_task(typingctx, counter, amount):
    """Atomically add `amount` to ``counter[0]`` (int64; or the address of one) and return the value before."""

    def codegen_(context, builder, sig, args):
        if isinstance(sig.args[0], types.Integer):
            pointer = builder.inttoptr(args[0], i64.as_pointer())
        else:
            pointer = element_pointer(context, builder, sig.args[0], args[0], i64(0), i64)
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return signature(types.int64, counter, types.int64), codegen_
