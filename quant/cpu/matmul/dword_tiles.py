"""Products of the form "dwords": four bytes at a time, each product exact, added to an int32."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lowlevel.cpu import simd
from lowlevel.cpu.simd import emit

from . import lanes
from .layouts import LANES, STEP, VECTOR, VECTORS

_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_floats = lanes.floats.llvm


@intrinsic
def dot_column(typingctx, sums, weights, x):
    """`sums` plus the products of four unsigned bytes a lane with the four signed ones at `x`."""

    def build(builder, sums, weights, x):
        four = lanes.emit_splat(builder, x, 0, _i32, lanes.ints)
        bytes_ = [builder.bitcast(v, lanes.four_bytes.llvm) for v in (weights, four)]
        return simd.emit_dot(builder, sums, *bytes_)

    ints = lanes.ints
    return emit.simple(build, ints, ints, ints, types.int64)


@intrinsic
def start_tile(typingctx, like, starts):
    """An int32 tile as wide as `like`: column c starts at the int32 stored at ``starts + 4 * c``."""
    columns = lanes.columns_of(like)
    result = lanes.tile_type(lanes.ints, columns)

    def codegen(context, builder, sig, args):
        one = [lanes.emit_splat(builder, args[1], 4 * c, _i32, lanes.ints) for c in range(columns)]
        return context.make_tuple(builder, result, one * VECTORS)

    return result(like, types.int64), codegen


# Vectors in one step of dot_tile.
_STEP_VECTORS = STEP // 4


@intrinsic
def dot_tile(typingctx, tile, panel, panel_stride, x):
    """Add 16 bytes of k: weights at `panel` (vectors `panel_stride` bytes apart), x at `x`.

    panel: 4 vectors, unsigned. x: 4 x columns dwords, signed bytes.
    """
    columns = lanes.columns_of(tile)

    def codegen(context, builder, sig, args):
        sums, (panel, stride, x) = lanes.unpack_tile(builder, args[0]), args[1:]
        panels = [builder.add(panel, builder.mul(stride, _i64(v))) for v in range(VECTORS)]
        dot = simd.emit_dot
        for k in range(_STEP_VECTORS):
            weights = [lanes.load_at(builder, p, VECTOR * k, lanes.four_bytes.llvm) for p in panels]
            for c in range(columns):
                four = lanes.emit_splat(builder, x, 4 * (k * columns + c), _i32, lanes.ints)
                four = builder.bitcast(four, lanes.four_bytes.llvm)
                for v in range(VECTORS):
                    i = v * columns + c
                    sums[i] = dot(builder, sums[i], weights[v], four)
        return context.make_tuple(builder, tile, sums)

    return tile(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def add_scaled_tile(typingctx, total, tile, scales, scales_stride, x_scales):
    """``total + tile * (row scales * column scale)``, the last product and sum fused.

    scales: a float32 a row, vectors `scales_stride` bytes apart; x_scales: a float32 a column.
    """
    columns = lanes.columns_of(total)

    def codegen(context, builder, sig, args):
        totals, sums = lanes.unpack_tile(builder, args[0]), lanes.unpack_tile(builder, args[1])
        scales, stride, x_scales = args[2:]
        for v in range(VECTORS):
            start = builder.add(scales, builder.mul(stride, _i64(v)))
            row_scales = lanes.load_at(builder, start, 0, _floats)
            for c in range(columns):
                i = v * columns + c
                column = lanes.emit_splat(builder, x_scales, 4 * c, _f32, lanes.floats)
                factors = [
                    builder.sitofp(sums[i], _floats),
                    builder.fmul(row_scales, column),
                    totals[i],
                ]
                totals[i] = emit.call(builder, f"llvm.fmuladd.v{LANES}f32", _floats, factors)
        return context.make_tuple(builder, total, totals)

    return total(total, tile, types.int64, types.int64, types.int64), codegen
