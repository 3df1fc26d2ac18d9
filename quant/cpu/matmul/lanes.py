"""Weight rows side by side, and the register tiles that multiply them.

`quant.matmul` keeps one weight row in each lane of a vector: lane r holds four consecutive
weights of row r, one byte each. A tile is one or two such vectors times a few columns
(rows of x): one accumulator per vector and column, all in registers. Every
product is one of a weight vector with four bytes of x repeated in all lanes, and what
differs from row to row (block scales) is a vector as well: nothing is ever summed across lanes.
A vector is a register: `LANES` of 4 bytes (layouts.py).

Everything is read and written by address (int64), so a kernel is compiled once whatever strides,
alignment or read-only flags the caller's arrays have. Callers keep the arrays alive.

A tile travels through a kernel as a tuple of vectors, (vector 0, column 0), (vector 0, column 1),
... (vector 1, column 0) ...; the number of columns is half its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lowlevel.cpu import simd
from lowlevel.cpu.simd import emit

from .layouts import LANES, ROWS, VECTOR, VECTORS, Job

if TYPE_CHECKING:
    from lowlevel.cpu.simd.vectors import Vec


_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
# Numba's types of a vector: a lane holds a float32, an int32, two words, four bytes; `half_words`: 16 bits a row.
floats, ints, half_words = (simd.Vec(kind, LANES) for kind in ("f32", "i32", "u16"))
words, four_bytes = simd.Vec("u16", 2 * LANES), simd.Vec("u8", 4 * LANES)
_ints, _floats = ints.llvm, floats.llvm


def pointer_at(builder: ir.IRBuilder, address: Any, offset: Any, llvm_type: ir.Type) -> ir.Value:
    return builder.inttoptr(builder.add(address, _i64(offset)), llvm_type.as_pointer())


def load_at(builder: ir.IRBuilder, address: Any, offset: Any, llvm_type: ir.Type) -> ir.Value:
    return builder.load(pointer_at(builder, address, offset, llvm_type), align=1)


def emit_splat(
    builder: ir.IRBuilder, address: Any, offset: Any, element: ir.Type, vec: Vec
) -> ir.Value:
    return emit.broadcast(builder, load_at(builder, address, offset, element), vec)


load_floats, load_ints = (simd.make_read_at(v, v.llvm) for v in (floats, ints))
# Of x, sixteen in a row whatever a vector holds.
load_f32x16 = simd.make_read_at(simd.f32x16, simd.f32x16.llvm)
load_int64 = simd.make_read_at(types.int64, _i64)
load_uint16 = simd.read_u16
load_f32 = simd.make_read_at(types.float32, _f32)
load_uint32 = simd.make_read_at(types.uint32, _i32)
put = simd.write_at  # put(address, value): a vector or scalar; any alignment


def _make_load_table(vec):
    @intrinsic
    def load_table(typingctx, array):
        """The first bytes of a C-contiguous array."""

        def codegen(context, builder, sig, args):
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            return builder.load(builder.bitcast(data, vec.llvm.as_pointer()), align=1)

        return vec(array), codegen

    return load_table


load_bytes = _make_load_table(four_bytes)


@intrinsic
def splat(typingctx, x):
    """`x` in every lane: floats from a float, ints from an int."""
    is_float = isinstance(x, types.Float)
    vec, scalar = (floats, types.float32) if is_float else (ints, types.int64)
    return emit.simple(lambda b, v: emit.broadcast(b, v, vec), vec, scalar)


def _make_bitcast(result):
    @intrinsic
    def bitcast(typingctx, v):
        """The same bits as another vector type."""
        return emit.simple(lambda b, x: b.bitcast(x, result.llvm), result, v)

    return bitcast


as_ints, as_bytes = _make_bitcast(ints), _make_bitcast(four_bytes)


@intrinsic
def load_job(typingctx, address):
    """The `Job` whose fields stand at an address, an int64 each."""
    job = types.NamedUniTuple(types.int64, len(Job._fields), Job)

    def codegen(context, builder, sig, args):
        fields = [load_at(builder, args[0], 8 * i, _i64) for i in range(len(Job._fields))]
        return context.make_tuple(builder, job, fields)

    return job(types.int64), codegen


@intrinsic
def put_bytes(typingctx, address, stride, values):
    """The low bytes of an i32x16 as four dwords, `stride` bytes apart."""

    def codegen(context, builder, sig, args):
        address, stride, values = args
        dwords = builder.bitcast(
            builder.trunc(values, ir.VectorType(ir.IntType(8), 16)), ir.VectorType(_i32, 4)
        )
        for i in range(4):
            target = builder.add(address, builder.mul(stride, _i64(i)))
            builder.store(
                builder.extract_element(dwords, _i32(i)),
                pointer_at(builder, target, 0, _i32),
                align=1,
            )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, simd.i32x16), codegen


# ---------------------------------------------------------------- rows in lanes


def _row_addresses(builder, rows, position):
    """Address of byte `position` in each of the rows whose addresses are stored at `rows`."""
    return [builder.add(load_at(builder, rows, 8 * r, _i64), position) for r in range(LANES)]


def _column(builder, rows, position, element):
    """One `element` from each row, as a vector."""
    result = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
    for r, address in enumerate(_row_addresses(builder, rows, position)):
        result = builder.insert_element(result, load_at(builder, address, 0, element), _i32(r))
    return result


@intrinsic
def column_u16(typingctx, rows, position):
    """16 bits at byte `position` of each row: half_words. `rows`: address of int64 row addresses."""
    return emit.simple(lambda b, r, p: _column(b, r, p, _i16), half_words, types.int64, types.int64)


@intrinsic
def column_i32(typingctx, rows, position):
    """32 bits at byte `position` of each row: ints."""
    return emit.simple(lambda b, r, p: _column(b, r, p, _i32), ints, types.int64, types.int64)


@intrinsic
def columns_4(typingctx, rows, position):
    """Bytes position..position+15 of each row, turned: four ints, 4 bytes of each row in each."""

    def codegen(context, builder, sig, args):
        four = ir.VectorType(_i32, 4)
        parts = [load_at(builder, a, 0, four) for a in _row_addresses(builder, *args)]

        def joined(vectors):  # one after the other in one
            while len(vectors) > 1:
                lanes = range(2 * vectors[0].type.count)
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                vectors = [emit.shuffle(builder, a, b, lanes) for a, b in pairs]
            return vectors[0]

        # Vector i: rows i, i+4, ..., so that a 4 x 4 turn within each group of four lanes
        # (cheap on every CPU) leaves the rows in order.
        first = [joined(parts[i::4]) for i in range(4)]
        low, high = [], []
        for a, b in ((first[0], first[1]), (first[2], first[3])):
            lanes, n = range(0, LANES, 4), LANES
            order = [g + k for g in lanes for k in (0, n, 1, n + 1)]
            low.append(emit.shuffle(builder, a, b, order))
            high.append(emit.shuffle(builder, a, b, [i + 2 for i in order]))
        result = []
        for a, b in (low, high):
            order = [g + k for g in lanes for k in (0, 1, n, n + 1)]
            result.append(emit.shuffle(builder, a, b, order))
            result.append(emit.shuffle(builder, a, b, [i + 2 for i in order]))
        return context.make_tuple(builder, sig.return_type, result)

    return types.UniTuple(ints, 4)(types.int64, types.int64), codegen


def _turn(builder, parts):
    """As many vectors as lanes, turned: dword i of every part in result i."""

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
            LANES * (i // unit % 2) + 2 * unit * (i // (2 * unit)) + unit * first + i % unit
            for i in range(LANES)
        ]

    for distance in (1, 2, 4, 8):
        if distance < LANES:
            parts = pairs(parts, distance, lanes_of(distance, 0), lanes_of(distance, 1))
    return parts


@intrinsic
def columns_16(typingctx, rows, position, distance):
    """Bytes position..position+63 of each row, turned: 16 ints, 4 bytes of each row in each.

    Whole cache lines: rows a power of two apart would push each other out between smaller pieces.
    Those `distance` bytes further on are fetched meanwhile.
    """

    def codegen(context, builder, sig, args):
        rows, position, distance = args
        addresses, turned = _row_addresses(builder, rows, position), []
        for offset in range(0, 64, VECTOR):
            parts = []
            for address in addresses:
                parts.append(load_at(builder, address, offset, _ints))
                if offset == 0:
                    simd.emit_prefetch(builder, builder.add(address, distance))
            turned += _turn(builder, parts)
        return context.make_tuple(builder, sig.return_type, turned)

    return types.UniTuple(ints, 16)(types.int64, types.int64, types.int64), codegen


@intrinsic
def add_tiles(typingctx, a, b):
    """Sum of two float tiles."""

    def codegen(context, builder, sig, args):
        first, second = unpack_tile(builder, args[0]), unpack_tile(builder, args[1])
        return context.make_tuple(builder, a, list(map(builder.fadd, first, second)))

    return a(a, a), codegen


@intrinsic
def low_halves(typingctx, v):
    """The low 16 bits of every lane: ints -> half_words."""
    return emit.simple(lambda b, x: b.trunc(x, half_words.llvm), half_words, ints)


@intrinsic
def halves(typingctx, v):
    """The low and the high 16 bits of every lane: ints -> two half_words."""
    pair = types.UniTuple(half_words, 2)

    def codegen(context, builder, sig, args):
        values, n = builder.bitcast(args[0], words.llvm), LANES
        if simd.LEVEL == "avx512":  # one vpermw; the plain form below becomes two vpmovdw
            order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
            index = ir.Constant(words.llvm, order)
            name = "llvm.x86.avx512.permvar.hi.512"
            values = emit.call(builder, name, values.type, [values, index])
            parts = [range(n), range(n, 2 * n)]
        else:
            parts = [range(0, 2 * n, 2), range(1, 2 * n, 2)]
        result = [emit.shuffle(builder, values, values, part) for part in parts]
        return context.make_tuple(builder, pair, result)

    return pair(ints), codegen


# ---------------------------------------------------------------- one column


def _make_splat_at(vec):
    element = vec.llvm.element

    @intrinsic
    def splat_at(typingctx, address):
        """The 32 bits at `address` in every lane."""
        return emit.simple(lambda b, a: emit_splat(b, a, 0, element, vec), vec, types.int64)

    return splat_at


splat_f32, splat_i32 = _make_splat_at(floats), _make_splat_at(ints)


# ---------------------------------------------------------------- tiles


def unpack_tile(builder: ir.IRBuilder, tile: ir.Value) -> list[ir.Value]:
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def columns_of(tile_type: Any) -> int:
    return tile_type.count // VECTORS


def tile_type(vec: Vec, columns: int) -> Any:
    return types.UniTuple(vec, VECTORS * columns)


@intrinsic(prefer_literal=True)
def zero_tile(typingctx, columns):
    """A float tile of zeros for `columns` (a literal) rows of x."""
    tile = tile_type(floats, columns.literal_value)

    def codegen(context, builder, sig, args):
        zeros = [ir.Constant(_floats, [0.0] * LANES)] * tile.count
        return context.make_tuple(builder, tile, zeros)

    return tile(columns), codegen


def _make_fma_tile(n_k):
    @intrinsic
    def fma_tile(typingctx, total, panel, panel_stride, x_rows, x_offset):
        """Add `n_k` values of k in float32: weights at `panel`, 16 floats a k; x where it lies.

        x_rows: address of one int64 per column, the address of that row of x; x_offset: bytes
        into it.
        """
        columns = columns_of(total)

        def codegen(context, builder, sig, args):
            totals, (panel, stride, x_rows, x_offset) = unpack_tile(builder, args[0]), args[1:]
            panels = [builder.add(panel, builder.mul(stride, _i64(v))) for v in range(VECTORS)]
            rows = [
                builder.add(load_at(builder, x_rows, 8 * c, _i64), x_offset) for c in range(columns)
            ]
            for k in range(n_k):
                weights = [load_at(builder, p, VECTOR * k, _floats) for p in panels]
                for c in range(columns):
                    column = emit_splat(builder, rows[c], 4 * k, _f32, floats)
                    for v in range(VECTORS):
                        i = v * columns + c
                        factors = [weights[v], column, totals[i]]
                        totals[i] = emit.call(
                            builder, f"llvm.fmuladd.v{LANES}f32", _floats, factors
                        )
            return context.make_tuple(builder, total, totals)

        return total(total, types.int64, types.int64, types.int64, types.int64), codegen

    return fma_tile


fma_tile_4, fma_tile_1 = _make_fma_tile(4), _make_fma_tile(1)


def _lane_masks(builder, n_rows):
    """For each vector of rows the mask of lanes below `n_rows`."""
    iota = ir.Constant(_ints, list(range(LANES)))
    masks = []
    for v in range(VECTORS):
        left = emit.broadcast(builder, builder.sub(n_rows, _i64(v * LANES)), ints)
        masks.append(builder.icmp_signed("<", iota, left))
    return masks


def _out_pointers(builder, outs, offset, columns):
    """(tile index, pointer) of every vector of a tile in the output rows listed at `outs`."""
    for c in range(columns):
        row = builder.add(load_at(builder, outs, 8 * c, _i64), offset)
        for v in range(VECTORS):
            yield v * columns + c, v, pointer_at(builder, row, 4 * LANES * v, _floats)


@intrinsic
def load_tile(typingctx, like, outs, offset, n_rows):
    """A float tile from ``out`` rows: column c at address ``int64[outs + 8 * c] + offset``.

    Only the first `n_rows` (1 to 32) rows of weights are read; the rest is 0.
    """
    columns = columns_of(like)

    def codegen(context, builder, sig, args):
        masks = _lane_masks(builder, args[3])
        zero, values = ir.Constant(_floats, [0.0] * LANES), [None] * like.count
        for i, v, pointer in _out_pointers(builder, args[1], args[2], columns):
            arguments = [pointer, _i32(4), masks[v], zero]
            values[i] = emit.call(builder, f"llvm.masked.load.v{LANES}f32.p0", _floats, arguments)
        return context.make_tuple(builder, like, values)

    return like(like, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_column(typingctx, value, address, n_rows):
    """The first `n_rows` lanes of an f32x16 (0 or less: none, 16 or more: all)."""

    def codegen(context, builder, sig, args):
        mask = _lane_masks(builder, args[2])[0]
        arguments = [args[0], pointer_at(builder, args[1], 0, _floats), _i32(4), mask]
        emit.call(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(floats, types.int64, types.int64), codegen


@intrinsic
def store_tile(typingctx, total, outs, offset, n_rows):
    """The inverse of `load_tile`."""
    columns = columns_of(total)

    def codegen(context, builder, sig, args):
        _, outs, offset, n_rows = args
        values = unpack_tile(builder, args[0])

        def masked():
            masks = _lane_masks(builder, n_rows)
            for i, v, pointer in _out_pointers(builder, outs, offset, columns):
                arguments = [values[i], pointer, _i32(4), masks[v]]
                name = f"llvm.masked.store.v{LANES}f32.p0"
                emit.call(builder, name, ir.VoidType(), arguments)

        if simd.LEVEL == "avx512":
            masked()
            return context.get_dummy_value()
        # Before AVX-512 a store with a mask takes a dozen cycles or more.
        is_whole = builder.icmp_signed(">=", n_rows, _i64(ROWS))
        with builder.if_else(is_whole, likely=True) as (whole, part):
            with whole:
                for i, _, pointer in _out_pointers(builder, outs, offset, columns):
                    builder.store(values[i], pointer, align=4)
            with part:
                masked()
        return context.get_dummy_value()

    return types.void(total, types.int64, types.int64, types.int64), codegen
