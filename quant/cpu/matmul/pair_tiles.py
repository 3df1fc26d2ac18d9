"""Products of the form "pairs" (AVX2): vpmaddubsw multiplies bytes and adds two neighbours, an int16 each.

How sums of a run go on from there, `sums` of a layout:

"words"
    They stay int16, two to a lane, and are added with vpaddw. They may wrap around on the way; that the last one
    fits, the layout has made sure. vpmaddwd multiplies both by the run's integer scale (or by one) and adds them.
"dwords"
    vpmaddwd by ones after each: an int32 a lane.
"signed"
    The weights are signed bytes, as large as a byte can be, and stay so: |w| meets x with w's sign (vpsignb).
    What products there are would not fit an int16 otherwise: 2 * 255 * 127. Then as "dwords".
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lowlevel.cpu.simd import emit

from . import lanes
from .layouts import LANES, STEP, VECTOR, VECTORS

_i1, _i32, _i64, _f32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
_floats, _ints = lanes.floats.llvm, lanes.ints.llvm
_words, _bytes = lanes.words.llvm, lanes.four_bytes.llvm
_ONES = ir.Constant(_words, [1] * 2 * LANES)
_FMA = f"llvm.fmuladd.v{LANES}f32"


def _add_pairs(builder, words, factors):
    """vpmaddwd: products of int16, two neighbours added."""
    return emit.call(builder, "llvm.x86.avx2.pmadd.wd", _ints, [words, factors])


def _multiply_bytes(builder, weights, x):
    return emit.call(builder, "llvm.x86.avx2.pmadd.ub.sw", _words, [weights, x])


# emit(builder, sum, weights, magnitudes, x): the sum with products of four bytes a lane added.


def _dot_words(builder, total, weights, magnitudes, x):
    return builder.add(total, _multiply_bytes(builder, weights, x))


def _dot_dwords(builder, total, weights, magnitudes, x):
    return builder.add(total, _add_pairs(builder, _multiply_bytes(builder, weights, x), _ONES))


def _dot_signed(builder, total, weights, magnitudes, x):
    x = emit.call(builder, "llvm.x86.avx2.psign.b", _bytes, [x, weights])
    return _dot_dwords(builder, total, magnitudes, None, x)


def _magnitudes(builder, weights):
    return emit.call(builder, "llvm.abs.v32i8", _bytes, [weights, _i1(0)])


# Type of sums, their emit, what magnitudes are.
_SUMS = {
    "words": (lanes.words, _dot_words, lambda builder, weights: None),
    "dwords": (lanes.ints, _dot_dwords, lambda builder, weights: None),
    "signed": (lanes.ints, _dot_signed, _magnitudes),
}


def _splat_bytes(builder, x, offset, vec):
    """The 32 bits at `x` + offset in every lane."""
    return builder.bitcast(lanes.emit_splat(builder, x, offset, _i32, lanes.ints), vec.llvm)


def _scaled(builder, sums, factors):
    """Sums of a run as int32, times factors: int16 twice a lane for words, else int32; None: ones."""
    if sums.type == _words:
        return _add_pairs(builder, sums, _ONES if factors is None else factors)
    return sums if factors is None else builder.mul(sums, factors)


def _vectors(builder, address, stride):
    """Addresses of the vectors of rows."""
    return [builder.add(address, builder.mul(stride, _i64(v))) for v in range(VECTORS)]


def make_start(sums: str) -> Any:
    vec = _SUMS[sums][0]

    @intrinsic
    def start(typingctx, address):
        """What the sums of a run start with: 32 bits at an address."""
        return emit.simple(lambda b, a: _splat_bytes(b, a, 0, vec), vec, types.int64)

    return start


def make_dot_column(sums: str) -> Any:
    vec, emit_dot, magnitudes_of = _SUMS[sums]

    @intrinsic
    def dot_column(typingctx, total, weights, x):
        """`total` plus the products of four bytes a lane with the four signed ones at `x`."""

        def build(builder, total, weights, x):
            weights = builder.bitcast(weights, _bytes)
            magnitudes = magnitudes_of(builder, weights)
            x = _splat_bytes(builder, x, 0, lanes.four_bytes)
            return emit_dot(builder, total, weights, magnitudes, x)

        return emit.simple(build, vec, vec, lanes.ints, types.int64)

    return dot_column


@intrinsic
def scaled(typingctx, sums, factors):
    """Sums of a run times an integer each lane: ints."""

    def build(builder, sums, factors):
        return _scaled(builder, sums, builder.bitcast(factors, sums.type))

    return emit.simple(build, lanes.ints, sums, lanes.ints)


@intrinsic
def summed(typingctx, sums):
    """Sums of a run: ints."""
    return emit.simple(lambda b, s: _scaled(b, s, None), lanes.ints, sums)


@intrinsic
def dot_words_column(typingctx, total, weights, x):
    """`total` (ints) plus the products of two int16 a lane with the two at `x`."""

    def build(builder, total, weights, x):
        x = _splat_bytes(builder, x, 0, lanes.words)
        return builder.add(total, _add_pairs(builder, builder.bitcast(weights, _words), x))

    return emit.simple(build, lanes.ints, lanes.ints, lanes.ints, types.int64)


# ---------------------------------------------------------------- tiles


def make_start_tile(sums: str) -> Any:
    vec = _SUMS[sums][0]

    @intrinsic
    def start_tile(typingctx, like, starts):
        """The sums of a run as wide as `like`: column c starts with the 32 bits at ``starts + 4 * c``."""
        columns = lanes.columns_of(like)
        result = lanes.tile_type(vec, columns)

        def codegen(context, builder, sig, args):
            one = [_splat_bytes(builder, args[1], 4 * c, vec) for c in range(columns)]
            return context.make_tuple(builder, result, one * VECTORS)

        return result(like, types.int64), codegen

    return start_tile


def make_dot_tile(sums: str, n_steps: int) -> Any:
    _, emit_dot, magnitudes_of = _SUMS[sums]

    @intrinsic
    def dot_tile(typingctx, tile, panel, panel_stride, x):
        """Add 16 bytes of k `n_steps` times: weights at `panel` (vectors `panel_stride` bytes apart), x at `x`.

        A step's panel: 4 vectors. x: 4 x columns dwords, signed bytes.
        """
        columns = lanes.columns_of(tile)

        def codegen(context, builder, sig, args):
            total, (panel, stride, x) = lanes.unpack_tile(builder, args[0]), args[1:]
            panels = _vectors(builder, panel, stride)
            for k in range(n_steps * STEP // 4):
                weights = [lanes.load_at(builder, p, VECTOR * k, _bytes) for p in panels]
                magnitudes = [magnitudes_of(builder, w) for w in weights]
                for c in range(columns):
                    four = _splat_bytes(builder, x, 4 * (k * columns + c), lanes.four_bytes)
                    for v in range(VECTORS):
                        i = v * columns + c
                        total[i] = emit_dot(builder, total[i], weights[v], magnitudes[v], four)
                        total[i] = emit.kept(builder, total[i])
                    emit.keep_order(builder)
            return context.make_tuple(builder, tile, total)

        return tile(tile, types.int64, types.int64, types.int64), codegen

    return dot_tile


@intrinsic
def dot_words_tile(typingctx, tile, panel, panel_stride, x):
    """Add the products of one vector of int16 pairs a vector of rows with a pair of x each column."""
    columns = lanes.columns_of(tile)

    def codegen(context, builder, sig, args):
        total, (panel, stride, x) = lanes.unpack_tile(builder, args[0]), args[1:]
        weights = [lanes.load_at(builder, p, 0, _words) for p in _vectors(builder, panel, stride)]
        for c in range(columns):
            pair = _splat_bytes(builder, x, 4 * c, lanes.words)
            for v in range(VECTORS):
                i = v * columns + c
                total[i] = builder.add(total[i], _add_pairs(builder, weights[v], pair))
        return context.make_tuple(builder, tile, total)

    return tile(tile, types.int64, types.int64, types.int64), codegen


# Tiles in memory: a vector after the other at an address. The registers are full of the sums of a run.


def _in_memory(builder, address, i, vec):
    return lanes.pointer_at(builder, address, VECTOR * i, vec)


@intrinsic
def clear_tile(typingctx, like, address):
    def codegen(context, builder, sig, args):
        for i in range(like.count):
            zero = ir.Constant(_ints, [0] * LANES)
            builder.store(zero, _in_memory(builder, args[1], i, _ints), align=VECTOR)
        return context.get_dummy_value()

    return types.void(like, types.int64), codegen


@intrinsic
def zero_ints(typingctx, like):
    """A tile of int32 zeros as wide as `like`."""
    tile = lanes.tile_type(lanes.ints, lanes.columns_of(like))

    def codegen(context, builder, sig, args):
        zeros = [ir.Constant(_ints, [0] * LANES)] * tile.count
        return context.make_tuple(builder, tile, zeros)

    return tile(like), codegen


@intrinsic
def put_tile(typingctx, tile, address):
    def codegen(context, builder, sig, args):
        for i, value in enumerate(lanes.unpack_tile(builder, args[0])):
            builder.store(value, _in_memory(builder, args[1], i, value.type), align=VECTOR)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


@intrinsic
def tile_at(typingctx, like, address):
    """The tile at an address, of the type of `like`."""

    def codegen(context, builder, sig, args):
        vec = like.dtype.llvm
        values = [
            builder.load(_in_memory(builder, args[1], i, vec), align=VECTOR)
            for i in range(like.count)
        ]
        return context.make_tuple(builder, like, values)

    return like(like, types.int64), codegen


@intrinsic
def add_run_tile(typingctx, sums, tile, factors, stride):
    """Add the sums of a run, times a factor a row, to a tile of int32 at address `sums`."""
    columns = lanes.columns_of(tile)

    def codegen(context, builder, sig, args):
        sums, run, factors, stride = args
        run = lanes.unpack_tile(builder, run)
        for v, address in enumerate(_vectors(builder, factors, stride)):
            by_row = lanes.load_at(builder, address, 0, run[0].type)
            for c in range(columns):
                pointer = _in_memory(builder, sums, v * columns + c, _ints)
                more = _scaled(builder, run[v * columns + c], by_row)
                total = builder.add(builder.load(pointer, align=VECTOR), more)
                builder.store(total, pointer, align=VECTOR)
        return context.get_dummy_value()

    return types.void(types.int64, tile, types.int64, types.int64), codegen


@intrinsic
def add_scaled_tile(typingctx, totals, tile, scales, stride, x_scales):
    """Add sums ``* (row scales * column scale)`` to a tile of float32 at address `totals`, fused."""
    columns = lanes.columns_of(tile)

    def codegen(context, builder, sig, args):
        totals, sums, scales, stride, x_scales = args
        sums = [_scaled(builder, s, None) for s in lanes.unpack_tile(builder, sums)]
        for v, address in enumerate(_vectors(builder, scales, stride)):
            by_row = lanes.load_at(builder, address, 0, _floats)
            for c in range(columns):
                pointer = _in_memory(builder, totals, v * columns + c, _floats)
                column = lanes.emit_splat(builder, x_scales, 4 * c, _f32, lanes.floats)
                factors = [
                    builder.sitofp(sums[v * columns + c], _floats),
                    builder.fmul(by_row, column),
                    builder.load(pointer, align=VECTOR),
                ]
                total = emit.call(builder, _FMA, _floats, factors)
                builder.store(total, pointer, align=VECTOR)
        return context.get_dummy_value()

    return types.void(types.int64, tile, *[types.int64] * 3), codegen


@intrinsic
def add_minimum_tile(typingctx, like, totals, minima, stride, x_sums):
    """Add ``minimum of the row * sum of the column``, float32, to a tile at address `totals`, fused."""
    columns = lanes.columns_of(like)

    def codegen(context, builder, sig, args):
        _, totals, minima, stride, x_sums = args
        for v, address in enumerate(_vectors(builder, minima, stride)):
            by_row = lanes.load_at(builder, address, 0, _floats)
            for c in range(columns):
                pointer = _in_memory(builder, totals, v * columns + c, _floats)
                column = lanes.emit_splat(builder, x_sums, 4 * c, _f32, lanes.floats)
                factors = [by_row, column, builder.load(pointer, align=VECTOR)]
                total = emit.call(builder, _FMA, _floats, factors)
                builder.store(total, pointer, align=VECTOR)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4), codegen
