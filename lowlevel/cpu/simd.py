"""Vector values for Numba CPU kernels.

LLVM vectors become Numba types (`f32x16`, `i32x16`, `u8x16`, ...) that kernels load, combine with
the ordinary operators, and store::

    w = simd.widen(simd.load_u8x16(q, b))            # 16 bytes -> i32x16
    y = simd.fma(simd.to_f32((w >> 2) & 3), dl, ml)  # f32x16
    simd.store(out, o, y)

Vectors are always 16 float or int lanes, or 64 bytes: one AVX-512 register. LLVM splits them on
narrower CPUs, so all arithmetic here is portable as it stands. Only what LLVM has no portable
instruction for comes in several forms, chosen once at import by `LEVEL`:

=========  =====================================  ==========================================
operation  avx512 / avx2                          portable
=========  =====================================  ==========================================
lookup16   one vpermps / two and a blend          lane by lane
bytes16    vpshufb                                lane by lane
dot_u8s8   vpdpbusd (VNNI) / vpmaddwd pairs       shifts and multiplies that LLVM vectorises
half       vcvtph2ps, vcvtps2ph (F16C)            integer arithmetic that LLVM vectorises
=========  =====================================  ==========================================

`LEVEL` follows the CPU, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, which Numba itself honours: that
is how the tests run the narrower forms. Numba keys its disk cache by both.

No fast-math flag is set here: `fma` is one rounding, ``*`` and ``+`` are one each.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, codegen, config, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from . import half

_i1, _i8, _i16, _i32, _i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_f32 = ir.FloatType()
_ELEMENT = {
    "f32": _f32,
    "i32": _i32,
    "u16": _i16,
    "u8": _i8,
    "mask": _i1,
}


# ---------------------------------------------------------------- what the CPU has


def _cpu_features():
    """The feature flags Numba compiles for, as a set of names."""
    text = config.CPU_FEATURES
    if text is None:
        text = codegen.get_host_cpu_features()
    return {flag[1:] for flag in text.split(",") if flag.startswith("+")}


def _level(features):
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= features:
        return "avx512"
    if {"avx2", "fma", "f16c"} <= features:
        return "avx2"
    return "portable"


FEATURES = frozenset(_cpu_features())
LEVEL = _level(FEATURES)
HAS_VNNI = LEVEL == "avx512" and "avx512vnni" in FEATURES


# ---------------------------------------------------------------- types


class Vec(types.Type):
    """A Numba type for `lanes` values of `kind` (f32, i32, u16, u8 or mask) in one LLVM vector."""

    def __init__(self, kind, lanes):
        self.kind, self.lanes = kind, lanes
        super().__init__(name=f"{kind}x{lanes}")

    @property
    def llvm(self):
        return ir.VectorType(_ELEMENT[self.kind], self.lanes)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16, i32x16, u16x16 = Vec("f32", 16), Vec("i32", 16), Vec("u16", 16)
u16x32 = Vec("u16", 32)
u8x16, u8x32, u8x64 = Vec("u8", 16), Vec("u8", 32), Vec("u8", 64)
mask16 = Vec("mask", 16)


# ---------------------------------------------------------------- building blocks for LLVM IR


def _constant(vec, value):
    return ir.Constant(vec.llvm, [value] * vec.lanes)


def _broadcast(builder, scalar, vec):
    """An LLVM scalar, converted to the element type of `vec` if it is an integer, in every lane."""
    if isinstance(scalar.type, ir.IntType) and scalar.type != vec.llvm.element:
        cast = builder.trunc if scalar.type.width > vec.llvm.element.width else builder.sext
        scalar = cast(scalar, vec.llvm.element)
    one = builder.insert_element(ir.Constant(vec.llvm, ir.Undefined), scalar, _i32(0))
    zeros = ir.Constant(ir.VectorType(_i32, vec.lanes), [0] * vec.lanes)
    return builder.shuffle_vector(one, ir.Constant(vec.llvm, ir.Undefined), zeros)


def _shuffle(builder, first, second, lanes):
    index = ir.Constant(ir.VectorType(_i32, len(lanes)), list(lanes))
    return builder.shuffle_vector(first, second, index)


def _call(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def _element_pointer(context, builder, array_type, array, index, llvm_type):
    """Pointer to element `index` of a Numba array, counted in the array's items, C order, 64 bit."""
    data = context.make_array(array_type)(context, builder, array).data
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    base = builder.bitcast(data, _i8.as_pointer())
    offset = builder.mul(index, _i64(size))
    return builder.bitcast(builder.gep(base, [offset]), llvm_type.as_pointer())


def _simple(build, result, *arguments):
    """An intrinsic of fixed argument types whose code is ``build(builder, *llvm values)``."""

    def codegen_(context, builder, sig, args):
        return build(builder, *args)

    return signature(result, *arguments), codegen_


# ---------------------------------------------------------------- operators: + - * / & | ^ << >> < ==

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
            right = _broadcast(builder, right, sig.args[0])
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


# ---------------------------------------------------------------- memory


def _make_load(vec):
    @intrinsic
    def load(typingctx, array, index):
        """`vec` from ``array[index : index + lanes]`` of a C-contiguous array; any alignment."""

        def codegen_(context, builder, sig, args):
            pointer = _element_pointer(context, builder, sig.args[0], *args, vec.llvm)
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
            pointer = _element_pointer(
                context, builder, sig.args[0], array_value, index_value, vector.type
            )
            instruction = builder.store(vector, pointer, align=align)
            if streaming:
                flag = builder.module.add_metadata([_i32(1)])
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
        return builder.ptrtoint(data, _i64)

    return signature(types.int64, array), codegen_


@intrinsic
def take_task(typingctx, counter, amount):
    """Atomically add `amount` to ``counter[0]`` (int64) and return the value before."""

    def codegen_(context, builder, sig, args):
        pointer = _element_pointer(context, builder, sig.args[0], args[0], _i64(0), _i64)
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return signature(types.int64, counter, types.int64), codegen_


# ---------------------------------------------------------------- making and converting vectors


@intrinsic
def splat(typingctx, x):
    """`x` in all 16 lanes: f32x16 from a float, i32x16 from an int."""
    vec = f32x16 if isinstance(x, types.Float) else i32x16
    scalar = types.float32 if vec is f32x16 else types.int64
    return _simple(lambda builder, v: _broadcast(builder, v, vec), vec, scalar)


@intrinsic
def iota(typingctx):
    """i32x16 of 0, 1, ... 15."""
    return _simple(lambda builder: ir.Constant(i32x16.llvm, list(range(16))), i32x16)


@intrinsic
def widen(typingctx, v):
    """Unsigned bytes or 16-bit values, 16 lanes, to i32x16."""
    return _simple(lambda builder, x: builder.zext(x, i32x16.llvm), i32x16, v)


@intrinsic
def widen_signed(typingctx, v):
    """Signed bytes or 16-bit values, 16 lanes, to i32x16."""
    return _simple(lambda builder, x: builder.sext(x, i32x16.llvm), i32x16, v)


@intrinsic
def narrow(typingctx, v):
    """The low bytes of i32 lanes, as u8x16."""
    return _simple(lambda builder, x: builder.trunc(x, u8x16.llvm), u8x16, i32x16)


@intrinsic
def shift_right_signed(typingctx, v, n):
    """Arithmetic right shift of every lane by `n`."""

    def codegen_(context, builder, sig, args):
        return builder.ashr(args[0], _broadcast(builder, args[1], sig.args[0]))

    return signature(v, v, types.int64), codegen_


@intrinsic
def to_f32(typingctx, v):
    """Signed i32 lanes to float32."""
    return _simple(lambda builder, x: builder.sitofp(x, f32x16.llvm), f32x16, i32x16)


@intrinsic
def to_i32(typingctx, v):
    """float32 lanes to int32, towards zero; callers keep them in range."""
    return _simple(lambda builder, x: builder.fptosi(x, i32x16.llvm), i32x16, f32x16)


def _make_bitcast(result):
    @intrinsic
    def bitcast(typingctx, v):
        """The same bits as another vector type of the same size."""
        return _simple(lambda builder, x: builder.bitcast(x, result.llvm), result, v)

    return bitcast


as_f32x16, as_i32x16, as_u8x64 = (_make_bitcast(v) for v in (f32x16, i32x16, u8x64))


def _make_half_of(second):
    @intrinsic
    def half_of(typingctx, v):
        """One half of a vector of bytes: u8x64 -> u8x32 -> u8x16."""
        lanes = v.lanes // 2
        part = range(second * lanes, (1 + second) * lanes)
        return _simple(lambda builder, x: _shuffle(builder, x, x, part), Vec("u8", lanes), v)

    return half_of


lower_half, upper_half = _make_half_of(0), _make_half_of(1)


@intrinsic
def join(typingctx, a, b):
    """Two vectors of bytes, one after the other: u8x16 -> u8x32 -> u8x64."""
    lanes = 2 * a.lanes
    return _simple(
        lambda builder, x, y: _shuffle(builder, x, y, range(lanes)), Vec("u8", lanes), a, a
    )


# (to float32, from float32)
_HALF = half.native if LEVEL != "portable" else half.by_integers


@intrinsic
def half_to_f32(typingctx, x):
    """IEEE half bits to float32: a uint16 scalar or u16x16 (exact)."""
    if isinstance(x, Vec):
        return _simple(_HALF[0], f32x16, u16x16)
    return _simple(_HALF[0], types.float32, types.uint16)


@intrinsic
def splat_half(typingctx, x):
    """IEEE half bits, a uint16 scalar, as float32 in all 16 lanes (exact)."""

    def build(builder, bits):
        if LEVEL == "portable":
            return _broadcast(builder, _HALF[0](builder, bits), f32x16)
        # Repeated before the conversion: the scalar one would wait for the register's old value.
        return _HALF[0](builder, _broadcast(builder, bits, u16x16))

    return _simple(build, f32x16, types.uint16)


@intrinsic
def f32_to_half(typingctx, x):
    """float32 to IEEE half bits, nearest even: scalar -> uint16, f32x16 -> u16x16."""
    if isinstance(x, Vec):
        return _simple(_HALF[1], u16x16, f32x16)
    return _simple(_HALF[1], types.uint16, types.float32)


@intrinsic
def bfloat_to_f32(typingctx, x):
    """bfloat16 bits to float32 (exact): a uint16 scalar or u16x16."""
    if isinstance(x, Vec):

        def build(builder, v):
            wide = builder.zext(v, i32x16.llvm)
            return builder.bitcast(builder.shl(wide, _constant(i32x16, 16)), f32x16.llvm)

        return _simple(build, f32x16, u16x16)

    def build_scalar(builder, v):
        return builder.bitcast(builder.shl(builder.zext(v, _i32), _i32(16)), _f32)

    return _simple(build_scalar, types.float32, types.uint16)


@intrinsic
def extract(typingctx, v, lane):
    """One lane as a scalar; `lane` may be a variable."""
    scalar = {"f32": types.float32, "i32": types.int32, "u8": types.uint8, "u16": types.uint16}
    return _simple(
        lambda builder, x, i: builder.extract_element(x, builder.trunc(i, _i32)),
        scalar[v.kind],
        v,
        types.int64,
    )


# ---------------------------------------------------------------- float arithmetic


@intrinsic
def fma(typingctx, a, b, c):
    """``a * b + c`` with one rounding."""
    return _simple(
        lambda builder, *v: _call(builder, "llvm.fma.v16f32", f32x16.llvm, v),
        f32x16, f32x16, f32x16, f32x16,
    )  # fmt: skip


@intrinsic
def multiply_add(typingctx, a, b, c):
    """``a * b + c``: fused where the CPU can, else rounded twice. Exact products: the same bits."""
    return _simple(
        lambda builder, *v: _call(builder, "llvm.fmuladd.v16f32", f32x16.llvm, v),
        f32x16, f32x16, f32x16, f32x16,
    )  # fmt: skip


@intrinsic
def divide(typingctx, a, b):
    """``a / b`` lane by lane."""
    return _simple(lambda builder, x, y: builder.fdiv(x, y), f32x16, f32x16, f32x16)


@intrinsic
def negate(typingctx, v):
    """Flip the sign of every float lane."""
    return _simple(lambda builder, x: builder.fneg(x), f32x16, f32x16)


@intrinsic
def absolute(typingctx, v):
    """Clear the sign of every float lane."""
    return _simple(
        lambda builder, x: _call(builder, "llvm.fabs.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def square_root(typingctx, v):
    """The correctly rounded square root of every lane."""
    return _simple(
        lambda builder, x: _call(builder, "llvm.sqrt.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def round_even(typingctx, v):
    """Round every lane to the nearest integer, ties to even."""
    return _simple(
        lambda builder, x: _call(builder, "llvm.rint.v16f32", f32x16.llvm, [x]), f32x16, f32x16
    )


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`."""
    return _simple(lambda builder, m, x, y: builder.select(m, x, y), a, mask16, a, a)


@intrinsic
def maximum(typingctx, a, b):
    """Lane by lane ``a if a > b else b``, of f32x16 or i32x16.

    A NaN in `b` stays, a NaN in `a` is dropped.
    """

    def build(builder, x, y):
        compare = builder.fcmp_ordered if a.kind == "f32" else builder.icmp_signed
        return builder.select(compare(">", x, y), x, y)

    return _simple(build, a, a, a)


@intrinsic
def minimum(typingctx, a, b):
    """Lane by lane ``a if a < b else b``, of f32x16 (NaN as in `maximum`) or i32x16."""

    def build(builder, x, y):
        compare = builder.fcmp_ordered if a.kind == "f32" else builder.icmp_signed
        return builder.select(compare("<", x, y), x, y)

    return _simple(build, a, a, a)


@intrinsic
def any_set(typingctx, mask):
    """True if any lane of a mask is set."""

    def build(builder, m):
        return builder.icmp_unsigned("!=", builder.bitcast(m, _i16), _i16(0))

    return _simple(build, types.boolean, mask16)


@intrinsic
def sum_lanes(typingctx, v):
    """Sum of 16 lanes, pairwise (f32x16 -> float32, i32x16 -> int32)."""
    is_float = v.kind == "f32"

    def build(builder, x):
        lanes = 16
        while lanes > 1:
            lanes //= 2
            low = _shuffle(builder, x, x, range(lanes))
            high = _shuffle(builder, x, x, range(lanes, 2 * lanes))
            x = builder.fadd(low, high) if is_float else builder.add(low, high)
        return builder.extract_element(x, _i32(0))

    return _simple(build, types.float32 if is_float else types.int32, v)


@intrinsic
def max_lanes(typingctx, v):
    """Largest of 16 float lanes (a NaN lane is ignored unless all are NaN)."""
    return _simple(
        lambda builder, x: _call(builder, "llvm.vector.reduce.fmax.v16f32", _f32, [x]),
        types.float32,
        f32x16,
    )


# ---------------------------------------------------------------- table lookups


def _by_lane(builder, table, index, bits):
    """Portable table lookup: result[i] = table[base + (index[i] & mask)] one lane at a time."""
    result = ir.Constant(table.type if bits == 32 else index.type, ir.Undefined)
    for lane in range(index.type.count):
        entry = builder.extract_element(index, _i32(lane))
        entry = builder.and_(entry, ir.Constant(entry.type, 15))
        if bits == 8:  # vpshufb looks up within each group of 16 bytes
            entry = builder.add(builder.zext(entry, _i32), _i32(lane // 16 * 16))
        result = builder.insert_element(result, builder.extract_element(table, entry), _i32(lane))
    return result


def _lookup16_avx512(builder, table, index):
    kind = "sf" if table.type.element == _f32 else "si"
    return _call(builder, f"llvm.x86.avx512.permvar.{kind}.512", table.type, [table, index])


def _lookup16_avx2(builder, table, index):
    name, eight = "llvm.x86.avx2.permd", ir.VectorType(_i32, 8)
    if table.type.element == _f32:
        name, eight = "llvm.x86.avx2.permps", ir.VectorType(_f32, 8)
    low_table = _shuffle(builder, table, table, range(8))
    high_table = _shuffle(builder, table, table, range(8, 16))
    halves = []
    for start in (0, 8):
        part = _shuffle(builder, index, index, range(start, start + 8))
        low = _call(builder, name, eight, [low_table, part])
        high = _call(builder, name, eight, [high_table, part])
        bit3 = builder.and_(part, ir.Constant(part.type, [8] * 8))
        use_high = builder.icmp_unsigned("!=", bit3, ir.Constant(part.type, [0] * 8))
        halves.append(builder.select(use_high, high, low))
    return _shuffle(builder, halves[0], halves[1], range(16))


_LOOKUP16 = {
    "avx512": _lookup16_avx512,
    "avx2": _lookup16_avx2,
    "portable": lambda builder, table, index: _by_lane(builder, table, index, 32),
}


@intrinsic
def lookup16(typingctx, table, index):
    """``table[index & 15]`` lane by lane; table f32x16 or i32x16, index i32x16."""
    return _simple(lambda builder, t, i: _LOOKUP16[LEVEL](builder, t, i), table, table, i32x16)


def _lookup16_words_avx512(builder, table, index):
    table = _shuffle(builder, table, table, [*range(16), *range(16)])
    index = builder.zext(index, u16x32.llvm)
    return _call(builder, "llvm.x86.avx512.permvar.hi.512", u16x32.llvm, [table, index])


def _lookup16_words_avx2(builder, table, index):
    """The low and the high bytes each by vpshufb, then put together."""
    table = builder.bitcast(table, u8x32.llvm)
    parts = []
    for byte in range(2):
        lanes = [2 * (i % 16) + byte for i in range(32)]
        args = [_shuffle(builder, table, table, lanes), index]
        parts.append(_call(builder, "llvm.x86.avx2.pshuf.b", u8x32.llvm, args))
    lanes = [i // 2 + 32 * (i % 2) for i in range(64)]
    return builder.bitcast(_shuffle(builder, parts[0], parts[1], lanes), u16x32.llvm)


def _lookup16_words_by_lane(builder, table, index):
    result = ir.Constant(u16x32.llvm, ir.Undefined)
    for lane in range(32):
        entry = builder.and_(builder.extract_element(index, _i32(lane)), _i8(15))
        result = builder.insert_element(result, builder.extract_element(table, entry), _i32(lane))
    return result


_LOOKUP16_WORDS = {
    "avx512": _lookup16_words_avx512,
    "avx2": _lookup16_words_avx2,
    "portable": _lookup16_words_by_lane,
}


@intrinsic
def lookup16_words(typingctx, table, index):
    """u16x32 of ``table[index]``; table u16x16, index u8x32 of 0 to 15."""
    return _simple(
        lambda builder, t, i: _LOOKUP16_WORDS[LEVEL](builder, t, i), u16x32, u16x16, u8x32
    )


def _bytes16_avx2(builder, table, index):
    half = ir.VectorType(_i8, 32)
    parts = []
    for start in (0, 32):
        lanes = range(start, start + 32)
        args = [_shuffle(builder, x, x, lanes) for x in (table, index)]
        parts.append(_call(builder, "llvm.x86.avx2.pshuf.b", half, args))
    return _shuffle(builder, parts[0], parts[1], range(64))


_BYTES16 = {
    "avx512": lambda builder, table, index: _call(
        builder, "llvm.x86.avx512.pshuf.b.512", table.type, [table, index]
    ),
    "avx2": _bytes16_avx2,
    "portable": lambda builder, table, index: _by_lane(builder, table, index, 8),
}


@intrinsic
def bytes16(typingctx, table, index):
    """Byte lookup within each group of 16: ``table[16 * (i // 16) + index[i]]``, 0 <= index < 16."""
    return _simple(lambda builder, t, i: _BYTES16[LEVEL](builder, t, i), u8x64, u8x64, u8x64)


# ---------------------------------------------------------------- integer dot products


def _dot_vnni(builder, acc, unsigned, signed):
    args = [acc, unsigned, signed]
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, args)


def _dot_words(builder, acc, unsigned, signed):
    """Even and odd bytes apart as 16-bit words, so that vpmaddwd cannot saturate."""
    words, eight = ir.VectorType(_i16, 32), ir.Constant(ir.VectorType(_i16, 32), [8] * 32)
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
            args = [_shuffle(builder, x, x, lanes) for x in (left, right)]
            result = ir.VectorType(_i32, 8)
            halves.append(_call(builder, "llvm.x86.avx2.pmadd.wd", result, args))
        acc = builder.add(acc, _shuffle(builder, halves[0], halves[1], range(16)))
    return acc


def _dot_shifts(builder, acc, unsigned, signed):
    u, s = builder.bitcast(unsigned, i32x16.llvm), builder.bitcast(signed, i32x16.llvm)
    top = _constant(i32x16, 24)
    for byte in range(4):
        shift = _constant(i32x16, 8 * byte)
        left = builder.and_(builder.lshr(u, shift), _constant(i32x16, 255))
        up = _constant(i32x16, 24 - 8 * byte)
        right = builder.ashr(builder.shl(s, up), top)
        acc = builder.add(acc, builder.mul(left, right))
    return acc


_DOT = {
    "avx512": _dot_vnni if HAS_VNNI else _dot_words,
    "avx2": _dot_words,
    "portable": _dot_shifts,
}


@intrinsic
def dot_u8s8(typingctx, acc, unsigned, signed):
    """``acc[i] + sum(unsigned[4i + j] * signed[4i + j] for j in range(4))`` in int32, no saturation."""
    return _simple(
        lambda builder, a, u, s: _DOT[LEVEL](builder, a, u, s), i32x16, i32x16, u8x64, u8x64
    )


# ---------------------------------------------------------------- raw addresses
# For operands with arbitrary strides: an int64 address in bytes, an index in elements (even
# negative ones: nothing wraps around).


def _pointer_at(builder, address, index, item_bytes, llvm_type):
    byte_address = builder.add(address, builder.mul(index, _i64(item_bytes)))
    return builder.inttoptr(byte_address, llvm_type.as_pointer())


def _make_read(result, llvm_type, item_bytes):
    @intrinsic
    def read(typingctx, address, index):
        """`result` at element `index` behind an address."""

        def build(builder, a, i):
            return builder.load(_pointer_at(builder, a, i, item_bytes, llvm_type), align=item_bytes)

        return _simple(build, result, types.int64, types.int64)

    return read


def _make_write(value_type, llvm_type, item_bytes):
    @intrinsic
    def write(typingctx, address, index, value):
        """Store `value` at element `index` behind an address."""

        def codegen_(context, builder, sig, args):
            pointer = _pointer_at(builder, args[0], args[1], item_bytes, llvm_type)
            builder.store(args[2], pointer, align=item_bytes)
            return context.get_dummy_value()

        return signature(types.void, types.int64, types.int64, value_type), codegen_

    return write


read_f32, read_f32x16 = _make_read(types.float32, _f32, 4), _make_read(f32x16, f32x16.llvm, 4)
write_f32, write_f32x16 = _make_write(types.float32, _f32, 4), _make_write(f32x16, f32x16.llvm, 4)


def _make_read_at(result, llvm_type):
    @intrinsic
    def read_at(typingctx, address):
        """The value behind an address in bytes; any alignment."""
        return _simple(
            lambda builder, a: builder.load(builder.inttoptr(a, llvm_type.as_pointer()), align=1),
            result,
            types.int64,
        )

    return read_at


read_u8, read_u16 = _make_read_at(types.uint8, _i8), _make_read_at(types.uint16, _i16)
read_u8x16, read_u8x32, read_u8x64 = (_make_read_at(v, v.llvm) for v in (u8x16, u8x32, u8x64))
read_u16x16 = _make_read_at(u16x16, u16x16.llvm)


def _make_write_at(piece_bytes):
    @intrinsic
    def write_at(typingctx, address, value):
        def codegen_(context, builder, sig, args):
            address, value = args
            if piece_bytes is None or not isinstance(value.type, ir.VectorType):
                pointer = builder.inttoptr(address, value.type.as_pointer())
                builder.store(value, pointer, align=1)
                return context.get_dummy_value()
            flag = builder.module.add_metadata([_i32(1)])
            lanes, size = value.type.count, context.get_abi_sizeof(value.type)
            n_pieces = max(1, size // piece_bytes)
            for i in range(n_pieces):
                start = i * lanes // n_pieces
                piece = _shuffle(builder, value, value, range(start, start + lanes // n_pieces))
                at = builder.add(address, _i64(i * size // n_pieces))
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
        address = builder.ptrtoint(slot, _i64)
        # No instruction, but LLVM must not see through the memory, or it would shuffle after all.
        kind = ir.FunctionType(_i64, [_i64])
        return builder.asm(kind, "", "=r,0,~{memory}", [address], side_effect=True)

    return signature(types.int64, v), codegen_


@intrinsic
def write_first_f32(typingctx, address, index, value, n):
    """Set the first `n` (up to 16) float32 of an f32x16 behind an address, nothing past them."""

    def build(builder, a, i, v, count):
        pointer = _pointer_at(builder, a, i, 4, f32x16.llvm)
        lanes = ir.Constant(i32x16.llvm, list(range(16)))
        mask = builder.icmp_signed("<", lanes, _broadcast(builder, count, i32x16))
        _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), [v, pointer, _i32(4), mask])
        return ir.Constant(_i8.as_pointer(), None)

    return _simple(build, types.void, types.int64, types.int64, f32x16, types.int64)


def emit_prefetch(builder, address):
    """The code of `prefetch`, for other intrinsics."""
    pointer = builder.inttoptr(address, _i8.as_pointer())
    arguments = [pointer, _i32(0), _i32(2), _i32(1)]  # for reading, into L2, data
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
    return ir.Constant(_i8.as_pointer(), None)


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address in bytes; any address will do."""
    return _simple(emit_prefetch, types.void, types.int64)


@intrinsic
def call_fill(typingctx, function, source, row_stride, n_rows, n_columns, destination, stride):
    """Call a KV fill (see lowlevel/kv_source.py) by its address; every argument is an int64."""

    def codegen_(context, builder, sig, args):
        byte_pointer, float_pointer = _i8.as_pointer(), _f32.as_pointer()
        arguments = [byte_pointer, _i64, _i64, _i64, float_pointer, _i64]
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
