"""Building blocks for LLVM IR, from which the operations are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.typing.templates import signature

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


i1, i8, i16, i32, i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
f32 = ir.FloatType()


def constant(vec: Any, value: Any) -> ir.Constant:
    return ir.Constant(vec.llvm, [value] * vec.lanes)


def broadcast(builder: ir.IRBuilder, scalar: ir.Value, vec: Any) -> ir.Value:
    """An LLVM scalar, converted to the element type of `vec` if it is an integer, in every lane."""
    if isinstance(scalar.type, ir.IntType) and scalar.type != vec.llvm.element:
        cast = builder.trunc if scalar.type.width > vec.llvm.element.width else builder.sext
        scalar = cast(scalar, vec.llvm.element)
    one = builder.insert_element(ir.Constant(vec.llvm, ir.Undefined), scalar, i32(0))
    zeros = ir.Constant(ir.VectorType(i32, vec.lanes), [0] * vec.lanes)
    return builder.shuffle_vector(one, ir.Constant(vec.llvm, ir.Undefined), zeros)


def shuffle(
    builder: ir.IRBuilder, first: ir.Value, second: ir.Value, lanes: Sequence[int]
) -> ir.Value:
    index = ir.Constant(ir.VectorType(i32, len(lanes)), list(lanes))
    return builder.shuffle_vector(first, second, index)


def call(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]
) -> ir.Value:
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def element_pointer(
    context: Any,
    builder: ir.IRBuilder,
    array_type: Any,
    array: ir.Value,
    index: Any,
    llvm_type: ir.Type,
) -> ir.Value:
    """Pointer to element `index` of a Numba array, counted in the array's items, C order, 64 bit."""
    data = context.make_array(array_type)(context, builder, array).data
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    base = builder.bitcast(data, i8.as_pointer())
    offset = builder.mul(index, i64(size))
    return builder.bitcast(builder.gep(base, [offset]), llvm_type.as_pointer())


def kept(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """`value` (a vector or an integer), of which LLVM knows nothing any more: a sum of it and others stays in the order in which it is written.

    LLVM adds integers in another order if that shortens chains, and then keeps more of them than there are registers.
    """
    kind = ir.FunctionType(value.type, [value.type])
    register = "=r" if isinstance(value.type, ir.IntType) else "=x"
    return builder.asm(kind, "", f"{register},0", [value], side_effect=False)


def keep_order(builder: ir.IRBuilder) -> None:
    """Loads before this stay before it, and those after it after it: no instruction, for the compiler alone."""
    builder.fence("seq_cst", "singlethread")


def simple(
    build: Callable[..., ir.Value], result: Any, *arguments: Any
) -> tuple[Any, Callable[..., ir.Value]]:
    """An intrinsic of fixed argument types whose code is ``build(builder, *llvm values)``."""

    def codegen_(context, builder, sig, args):
        return build(builder, *args)

    return signature(result, *arguments), codegen_
