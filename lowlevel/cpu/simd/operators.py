"""The operators of vectors: ``+ - * / & | ^ << >> < <= > >= ==``."""

import operator

from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from .emit import broadcast
from .vectors import Vec

_FLOAT_OPS = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}
_INT_OPS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "lshr",  # logical: lanes are bit patterns; see shift_right_signed
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
}


def _operand_type(vec, other):
    """The type to cast the right operand to, or None if it does not fit."""
    if other == vec:
        return vec
    if vec.kind == "f32" and isinstance(other, types.Float):
        return types.float32
    if vec.kind != "f32" and isinstance(other, types.Integer):
        return types.int64
    return None


def _register_operator(op, has_kind, result_of, build):
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            left, right = args
            if isinstance(left, Vec) and has_kind(left.kind):
                right = _operand_type(left, right)
                if right is not None:
                    return signature(result_of(left), left, right)

    infer_global(op)(Template)

    def lower(context, builder, sig, args):
        left, right = args
        if not isinstance(sig.args[1], Vec):
            right = broadcast(builder, right, sig.args[0])
        return build(builder, sig.args[0], left, right)

    for right_class in (Vec, types.Float, types.Integer):
        lower_builtin(op, Vec, right_class)(lower)


def _arithmetic(op):
    def build(builder, vec, left, right):
        name = _FLOAT_OPS[op] if vec.kind == "f32" else _INT_OPS[op]
        return getattr(builder, name)(left, right)

    return build


def _comparison(op):
    def build(builder, vec, left, right):
        if vec.kind == "f32":
            return builder.fcmp_ordered(_COMPARISONS[op], left, right)
        return builder.icmp_signed(_COMPARISONS[op], left, right)

    return build


def _kinds_with(op):
    """Whether lanes of a kind know `op`."""
    return lambda kind: op in (_FLOAT_OPS if kind == "f32" else _INT_OPS)


for _op in {**_FLOAT_OPS, **_INT_OPS}:
    for _form in (_op, getattr(operator, f"i{_op.__name__.rstrip('_')}")):  # a + b and a += b
        _register_operator(_form, _kinds_with(_op), lambda vec: vec, _arithmetic(_op))
for _op in _COMPARISONS:  # ordered: false where a lane is NaN
    _register_operator(
        _op,
        lambda kind: kind in ("f32", "i32"),
        lambda vec: Vec("mask", vec.lanes),
        _comparison(_op),
    )
