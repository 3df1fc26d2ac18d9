"""Sixteen weight rows side by side, and the register tiles that multiply them.

`quant.matmul` keeps one weight row in each lane of a 64-byte vector: lane r holds four consecutive
weights of row r, one byte each. A tile is one or two such vectors times a few columns
(rows of x): one int32 or float32 accumulator per vector and column, all in registers. Every
product is one `dot_u8s8` of a weight vector with four bytes of x repeated in all lanes, and what
differs from row to row (block scales) is a vector as well: nothing is ever summed across lanes.

Everything is read and written by address (int64), so a kernel is compiled once whatever strides,
alignment or read-only flags the caller's arrays have. Callers keep the arrays alive.

A tile travels through a kernel as a tuple of vectors, (vector 0, column 0), (vector 0, column 1),
... (vector 1, column 0) ...; the number of columns is half its length.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lowlevel.cpu import simd
from lowlevel.cpu.simd import emit

from .layouts import LANES, STEP, VECTORS, Job

_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_i32x16, _f32x16 = simd.i32x16.llvm, simd.f32x16.llvm


def _pointer(builder, address, offset, llvm_type):
    return builder.inttoptr(builder.add(address, _i64(offset)), llvm_type.as_pointer())


def _load(builder, address, offset, llvm_type):
    return builder.load(_pointer(builder, address, offset, llvm_type), align=1)


def _splat_at(builder, address, offset, element, vec):
    return emit.broadcast(builder, _load(builder, address, offset, element), vec)


load_at_f32, load_at_i32 = (simd.make_read_at(v, v.llvm) for v in (simd.f32x16, simd.i32x16))
load_int64 = simd.make_read_at(types.int64, _i64)
load_uint16 = simd.read_u16
load_f32 = simd.make_read_at(types.float32, _f32)
load_uint32 = simd.make_read_at(types.uint32, _i32)
put = simd.write_at  # put(address, value): a vector or scalar; any alignment


@intrinsic
def load_job(typingctx, address):
    """The `Job` whose fields stand at an address, an int64 each."""
    job = types.NamedUniTuple(types.int64, len(Job._fields), Job)

    def codegen(context, builder, sig, args):
        fields = [_load(builder, args[0], 8 * i, _i64) for i in range(len(Job._fields))]
        return context.make_tuple(builder, job, fields)

    return job(types.int64), codegen


@intrinsic
def put_bytes(typingctx, address, stride, values):
    """The low bytes of an i32x16 as four dwords, `stride` bytes apart."""

    def codegen(context, builder, sig, args):
        address, stride, values = args
        dwords = builder.bitcast(
            builder.trunc(values, ir.VectorType(ir.IntType(8), LANES)), ir.VectorType(_i32, 4)
        )
        for i in range(4):
            target = builder.add(address, builder.mul(stride, _i64(i)))
            builder.store(
                builder.extract_element(dwords, _i32(i)),
                _pointer(builder, target, 0, _i32),
                align=1,
            )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, simd.i32x16), codegen


# ---------------------------------------------------------------- sixteen rows in lanes


def _row_addresses(builder, rows, position):
    """Address of byte `position` in each of the 16 rows whose addresses are stored at `rows`."""
    return [builder.add(_load(builder, rows, 8 * r, _i64), position) for r in range(LANES)]


def _column(builder, rows, position, element):
    """One `element` from each row, as a vector of 16."""
    result = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
    for r, address in enumerate(_row_addresses(builder, rows, position)):
        result = builder.insert_element(result, _load(builder, address, 0, element), _i32(r))
    return result


@intrinsic
def column_u16(typingctx, rows, position):
    """16 bits at byte `position` of each row: u16x16. `rows`: address of 16 int64 row addresses."""
    return emit.simple(
        lambda b, r, p: _column(b, r, p, _i16), simd.u16x16, types.int64, types.int64
    )


@intrinsic
def column_i32(typingctx, rows, position):
    """32 bits at byte `position` of each row: i32x16."""
    return emit.simple(
        lambda b, r, p: _column(b, r, p, _i32), simd.i32x16, types.int64, types.int64
    )


@intrinsic
def columns_4(typingctx, rows, position):
    """Bytes position..position+15 of each row, turned: four i32x16, 4 bytes of each row in each."""

    def codegen(context, builder, sig, args):
        four = ir.VectorType(_i32, 4)
        parts = [_load(builder, a, 0, four) for a in _row_addresses(builder, *args)]

        def joined(rows):  # parts of four rows in one vector
            pairs = [
                emit.shuffle(builder, parts[rows[i]], parts[rows[i + 1]], range(8)) for i in (0, 2)
            ]
            return emit.shuffle(builder, pairs[0], pairs[1], range(16))

        # Vector i: rows i, i+4, i+8, i+12, so that a 4 x 4 turn within each group of four lanes
        # (cheap on every CPU) leaves the rows in order.
        first = [joined([i, i + 4, i + 8, i + 12]) for i in range(4)]
        low, high = [], []
        for a, b in ((first[0], first[1]), (first[2], first[3])):
            lanes = range(0, 16, 4)
            low.append(emit.shuffle(builder, a, b, [g + k for g in lanes for k in (0, 16, 1, 17)]))
            high.append(emit.shuffle(builder, a, b, [g + k for g in lanes for k in (2, 18, 3, 19)]))
        result = []
        for a, b in (low, high):
            result.append(
                emit.shuffle(builder, a, b, [g + k for g in lanes for k in (0, 1, 16, 17)])
            )
            result.append(
                emit.shuffle(builder, a, b, [g + k for g in lanes for k in (2, 3, 18, 19)])
            )
        return context.make_tuple(builder, sig.return_type, result)

    return types.UniTuple(simd.i32x16, 4)(types.int64, types.int64), codegen


def _turn_16(builder, parts):
    """Sixteen vectors of 16 dwords, turned: dword i of every part in result i."""

    def pairs(vectors, distance, low, high):
        """Vectors i and i + distance, shuffled both ways."""
        result = list(vectors)
        for i in range(LANES):
            if not i & distance:
                a, b = vectors[i], vectors[i + distance]
                result[i] = emit.shuffle(builder, a, b, low)
                result[i + distance] = emit.shuffle(builder, a, b, high)
        return result

    def lanes_of(unit, first):
        """Every other `unit` lanes of one vector, from `first` on, between those of the other."""
        return [
            16 * (i // unit % 2) + 2 * unit * (i // (2 * unit)) + unit * first + i % unit
            for i in range(LANES)
        ]

    for distance in (1, 2, 4, 8):
        parts = pairs(parts, distance, lanes_of(distance, 0), lanes_of(distance, 1))
    return parts


@intrinsic
def columns_16(typingctx, rows, position, distance):
    """Bytes position..position+63 of each row, turned: 16 i32x16, 4 bytes of each row in each.

    Whole cache lines: rows a power of two apart would push each other out between smaller pieces.
    Those `distance` bytes further on are fetched meanwhile.
    """

    def codegen(context, builder, sig, args):
        rows, position, distance = args
        parts = []
        for address in _row_addresses(builder, rows, position):
            parts.append(_load(builder, address, 0, _i32x16))
            simd.emit_prefetch(builder, builder.add(address, distance))
        return context.make_tuple(builder, sig.return_type, _turn_16(builder, parts))

    return types.UniTuple(simd.i32x16, LANES)(types.int64, types.int64, types.int64), codegen


@intrinsic
def add_tiles(typingctx, a, b):
    """Sum of two float tiles."""

    def codegen(context, builder, sig, args):
        first, second = _unpack_tile(builder, args[0]), _unpack_tile(builder, args[1])
        return context.make_tuple(builder, a, list(map(builder.fadd, first, second)))

    return a(a, a), codegen


@intrinsic
def low_halves(typingctx, v):
    """The low 16 bits of every lane: i32x16 -> u16x16."""
    halves = simd.u16x16
    return emit.simple(lambda b, x: b.trunc(x, halves.llvm), halves, simd.i32x16)


@intrinsic
def halves(typingctx, v):
    """The low and the high 16 bits of every lane: i32x16 -> two u16x16."""
    pair = types.UniTuple(simd.u16x16, 2)

    def codegen(context, builder, sig, args):
        words = builder.bitcast(args[0], simd.u16x32.llvm)
        if simd.LEVEL == "avx512":  # one vpermw; the plain form below becomes two vpmovdw
            order = [*range(0, 32, 2), *range(1, 32, 2)]
            index = ir.Constant(simd.u16x32.llvm, order)
            name = "llvm.x86.avx512.permvar.hi.512"
            words = emit.call(builder, name, words.type, [words, index])
            parts = [range(16), range(16, 32)]
        else:
            parts = [range(0, 32, 2), range(1, 32, 2)]
        result = [emit.shuffle(builder, words, words, part) for part in parts]
        return context.make_tuple(builder, pair, result)

    return pair(simd.i32x16), codegen


# ---------------------------------------------------------------- one column


def _make_splat_at(vec):
    element = vec.llvm.element

    @intrinsic
    def splat_at(typingctx, address):
        """The 32 bits at `address` in every lane."""
        return emit.simple(lambda b, a: _splat_at(b, a, 0, element, vec), vec, types.int64)

    return splat_at


splat_f32, splat_i32 = _make_splat_at(simd.f32x16), _make_splat_at(simd.i32x16)


@intrinsic
def dot_column(typingctx, sums, weights, x):
    """`sums` plus the products of four unsigned bytes a lane with the four signed ones at `x`."""

    def build(builder, sums, weights, x):
        four = _splat_at(builder, x, 0, _i32, simd.i32x16)
        bytes_ = [builder.bitcast(v, simd.u8x64.llvm) for v in (weights, four)]
        return simd.emit_dot(builder, sums, *bytes_)

    i32x16 = simd.i32x16
    return emit.simple(build, i32x16, i32x16, i32x16, types.int64)


# ---------------------------------------------------------------- tiles


def _unpack_tile(builder, tile):
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def _columns_of(tile_type):
    return tile_type.count // VECTORS


def _tile_type(vec, columns):
    return types.UniTuple(vec, VECTORS * columns)


@intrinsic(prefer_literal=True)
def zero_tile(typingctx, columns):
    """A float tile of zeros for `columns` (a literal) rows of x."""
    tile = _tile_type(simd.f32x16, columns.literal_value)

    def codegen(context, builder, sig, args):
        zeros = [ir.Constant(_f32x16, [0.0] * LANES)] * tile.count
        return context.make_tuple(builder, tile, zeros)

    return tile(columns), codegen


@intrinsic
def start_tile(typingctx, like, starts):
    """An int32 tile as wide as `like`: column c starts at the int32 stored at ``starts + 4 * c``."""
    columns = _columns_of(like)
    result = _tile_type(simd.i32x16, columns)

    def codegen(context, builder, sig, args):
        one = [_splat_at(builder, args[1], 4 * c, _i32, simd.i32x16) for c in range(columns)]
        return context.make_tuple(builder, result, one * VECTORS)

    return result(like, types.int64), codegen


# Vectors in one step of dot_tile.
_STEP_VECTORS = STEP // 4


@intrinsic
def dot_tile(typingctx, tile, panel, panel_stride, x):
    """Add 16 bytes of k: weights at `panel` (vectors `panel_stride` bytes apart), x at `x`.

    panel: 4 vectors of 64 bytes, unsigned. x: 4 x columns dwords, signed bytes.
    """
    columns = _columns_of(tile)

    def codegen(context, builder, sig, args):
        sums, (panel, stride, x) = _unpack_tile(builder, args[0]), args[1:]
        panels = [builder.add(panel, builder.mul(stride, _i64(v))) for v in range(VECTORS)]
        dot = simd.emit_dot
        for k in range(_STEP_VECTORS):
            weights = [_load(builder, p, 64 * k, simd.u8x64.llvm) for p in panels]
            for c in range(columns):
                four = _splat_at(builder, x, 4 * (k * columns + c), _i32, simd.i32x16)
                four = builder.bitcast(four, simd.u8x64.llvm)
                for v in range(VECTORS):
                    i = v * columns + c
                    sums[i] = dot(builder, sums[i], weights[v], four)
        return context.make_tuple(builder, tile, sums)

    return tile(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def add_scaled_tile(typingctx, total, tile, scales, scales_stride, x_scales):
    """``total + tile * (row scales * column scale)``, the last product and sum fused.

    scales: 16 float32 a vector, vectors `scales_stride` bytes apart; x_scales: a float32 a column.
    """
    columns = _columns_of(total)

    def codegen(context, builder, sig, args):
        totals, sums = _unpack_tile(builder, args[0]), _unpack_tile(builder, args[1])
        scales, stride, x_scales = args[2:]
        for v in range(VECTORS):
            start = builder.add(scales, builder.mul(stride, _i64(v)))
            row_scales = _load(builder, start, 0, _f32x16)
            for c in range(columns):
                i = v * columns + c
                column = _splat_at(builder, x_scales, 4 * c, _f32, simd.f32x16)
                factors = [
                    builder.sitofp(sums[i], _f32x16),
                    builder.fmul(row_scales, column),
                    totals[i],
                ]
                totals[i] = emit.call(builder, "llvm.fmuladd.v16f32", _f32x16, factors)
        return context.make_tuple(builder, total, totals)

    return total(total, tile, types.int64, types.int64, types.int64), codegen


def _make_fma_tile(n_k):
    @intrinsic
    def fma_tile(typingctx, total, panel, panel_stride, x_rows, x_offset):
        """Add `n_k` values of k in float32: weights at `panel`, 16 floats a k; x where it lies.

        x_rows: address of one int64 per column, the address of that row of x; x_offset: bytes
        into it.
        """
        columns = _columns_of(total)

        def codegen(context, builder, sig, args):
            totals, (panel, stride, x_rows, x_offset) = _unpack_tile(builder, args[0]), args[1:]
            panels = [builder.add(panel, builder.mul(stride, _i64(v))) for v in range(VECTORS)]
            rows = [
                builder.add(_load(builder, x_rows, 8 * c, _i64), x_offset) for c in range(columns)
            ]
            for k in range(n_k):
                weights = [_load(builder, p, 64 * k, _f32x16) for p in panels]
                for c in range(columns):
                    column = _splat_at(builder, rows[c], 4 * k, _f32, simd.f32x16)
                    for v in range(VECTORS):
                        i = v * columns + c
                        factors = [weights[v], column, totals[i]]
                        totals[i] = emit.call(builder, "llvm.fmuladd.v16f32", _f32x16, factors)
            return context.make_tuple(builder, total, totals)

        return total(total, types.int64, types.int64, types.int64, types.int64), codegen

    return fma_tile


fma_tile_4, fma_tile_1 = _make_fma_tile(4), _make_fma_tile(1)


def _lane_masks(builder, n_rows):
    """For each vector of rows the mask of lanes below `n_rows`."""
    iota = ir.Constant(_i32x16, list(range(LANES)))
    masks = []
    for v in range(VECTORS):
        left = emit.broadcast(builder, builder.sub(n_rows, _i64(v * LANES)), simd.i32x16)
        masks.append(builder.icmp_signed("<", iota, left))
    return masks


def _out_pointers(builder, outs, offset, columns):
    """(tile index, pointer) of every vector of a tile in the output rows listed at `outs`."""
    for c in range(columns):
        row = builder.add(_load(builder, outs, 8 * c, _i64), offset)
        for v in range(VECTORS):
            yield v * columns + c, v, _pointer(builder, row, 4 * LANES * v, _f32x16)


@intrinsic
def load_tile(typingctx, like, outs, offset, n_rows):
    """A float tile from ``out`` rows: column c at address ``int64[outs + 8 * c] + offset``.

    Only the first `n_rows` (1 to 32) rows of weights are read; the rest is 0.
    """
    columns = _columns_of(like)

    def codegen(context, builder, sig, args):
        masks = _lane_masks(builder, args[3])
        zero, values = ir.Constant(_f32x16, [0.0] * LANES), [None] * like.count
        for i, v, pointer in _out_pointers(builder, args[1], args[2], columns):
            arguments = [pointer, _i32(4), masks[v], zero]
            values[i] = emit.call(builder, "llvm.masked.load.v16f32.p0", _f32x16, arguments)
        return context.make_tuple(builder, like, values)

    return like(like, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_column(typingctx, value, address, n_rows):
    """The first `n_rows` lanes of an f32x16 (0 or less: none, 16 or more: all)."""

    def codegen(context, builder, sig, args):
        mask = _lane_masks(builder, args[2])[0]
        arguments = [args[0], _pointer(builder, args[1], 0, _f32x16), _i32(4), mask]
        emit.call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(simd.f32x16, types.int64, types.int64), codegen


@intrinsic
def store_tile(typingctx, total, outs, offset, n_rows):
    """The inverse of `load_tile`."""
    columns = _columns_of(total)

    def codegen(context, builder, sig, args):
        values, masks = _unpack_tile(builder, args[0]), _lane_masks(builder, args[3])
        for i, v, pointer in _out_pointers(builder, args[1], args[2], columns):
            arguments = [values[i], pointer, _i32(4), masks[v]]
            name = "llvm.masked.store.v16f32.p0"
            emit.call(builder, name, ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(total, types.int64, types.int64, types.int64), codegen
