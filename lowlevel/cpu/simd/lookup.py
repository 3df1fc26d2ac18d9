"""Table lookups."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .emit import call, f32, i1, i8, i32, i64, keep_order, kept, shuffle, simple
from .level import HAS_FAST_GATHER, LEVEL
from .vectors import Vec, u8x32, u16x16, u16x32


def _by_lane(builder, table, index, bits):
    """Portable table lookup: result[i] = table[base + (index[i] & mask)] one lane at a time."""
    result = ir.Constant(table.type if bits == 32 else index.type, ir.Undefined)
    for lane in range(index.type.count):
        entry = builder.extract_element(index, i32(lane))
        entry = builder.and_(entry, ir.Constant(entry.type, 15))
        if bits == 8:  # vpshufb looks up within each group of 16 bytes
            entry = builder.add(builder.zext(entry, i32), i32(lane // 16 * 16))
        result = builder.insert_element(result, builder.extract_element(table, entry), i32(lane))
    return result


def _lookup16_avx512(builder, table, index):
    kind = "sf" if table.type.element == f32 else "si"
    return call(builder, f"llvm.x86.avx512.permvar.{kind}.512", table.type, [table, index])


def _lookup16_avx2(builder, table, index):
    name, eight = "llvm.x86.avx2.permd", ir.VectorType(i32, 8)
    if table.type.element == f32:
        name, eight = "llvm.x86.avx2.permps", ir.VectorType(f32, 8)
    low_table = shuffle(builder, table, table, range(8))
    high_table = shuffle(builder, table, table, range(8, 16))
    halves = []
    for start in range(0, index.type.count, 8):
        part = shuffle(builder, index, index, range(start, start + 8))
        low = call(builder, name, eight, [low_table, part])
        high = call(builder, name, eight, [high_table, part])
        bit3 = builder.and_(part, ir.Constant(part.type, [8] * 8))
        use_high = builder.icmp_unsigned("!=", bit3, ir.Constant(part.type, [0] * 8))
        halves.append(builder.select(use_high, high, low))
    return halves[0] if len(halves) == 1 else shuffle(builder, *halves, range(16))


_LOOKUP16 = {
    "avx512": _lookup16_avx512,
    "avx2": _lookup16_avx2,
    "portable": lambda builder, table, index: _by_lane(builder, table, index, 32),
}


@intrinsic
def lookup16(typingctx, table, index):
    """``table[index & 15]`` lane by lane; table f32x16 or i32x16, index i32x16 (or, with AVX2, i32x8)."""
    result = Vec(table.kind, index.lanes)
    return simple(lambda builder, t, i: _LOOKUP16[LEVEL](builder, t, i), result, table, index)


def _extracted(builder, index):
    """The lanes of a vector, one by one."""
    return [builder.extract_element(index, i32(lane)) for lane in range(index.type.count)]


def _by_way_of_memory(builder, index):
    """The same by a store and loads: vpextrd is two instructions, one of them on the port that also shuffles."""
    slot = cgutils.alloca_once(builder, index.type)
    slot.align = 32
    builder.store(index, slot, align=32)
    # LLVM, which does not know that it is the same place, cannot put extractions there again.
    lanes = builder.inttoptr(kept(builder, builder.ptrtoint(slot, i64)), i32.as_pointer())
    keep_order(builder)
    return [builder.load(builder.gep(lanes, [i32(i)])) for i in range(index.type.count)]


_SCALARS = {"avx512": _extracted, "avx2": _by_way_of_memory, "portable": _extracted}


def _load_each(builder, memory, index, result):
    """Entries by loads of their own."""
    entries = builder.bitcast(memory, result.element.as_pointer())
    found = ir.Constant(result, ir.Undefined)
    for lane, at in enumerate(_SCALARS[LEVEL](builder, index)):
        entry = builder.load(builder.gep(entries, [at]), align=4)
        found = builder.insert_element(found, entry, i32(lane))
    return found


def _gather_avx512(builder, memory, index, result):
    n_bytes = result.element.width // 8
    kind = {4: "dpi", 8: "dpq"}[n_bytes]
    all_lanes = ir.Constant(ir.VectorType(i1, result.count), [1] * result.count)
    args = [ir.Constant(result, None), memory, index, all_lanes, i32(n_bytes)]
    return call(builder, f"llvm.x86.avx512.mask.gather.{kind}.512", result, args)


def _gather_avx2(builder, memory, index, result):
    n_bytes = result.element.width // 8
    kind = {4: "d.d", 8: "d.q"}[n_bytes]
    all_lanes = ir.Constant(result, [-1] * result.count)
    args = [ir.Constant(result, None), memory, index, all_lanes, i8(n_bytes)]
    return call(builder, f"llvm.x86.avx2.gather.{kind}.256", result, args)


# What reads entries, and the bits that it reads at once. Gathers are faster on some CPUs alone: of the time that products of
# one row with IQ formats take by single loads, Sapphire Rapids needs 0.45 to 0.65 with them.
_GATHERS = {"avx512": (_gather_avx512, 512), "avx2": (_gather_avx2, 256)}
_READ_ENTRIES = _GATHERS[LEVEL] if HAS_FAST_GATHER else (_load_each, 512)


def _entries(builder, data, index, element):
    """A vector of the entries, of type `element`, at the places of `index`."""
    read, bits = _READ_ENTRIES
    memory, n = builder.bitcast(data, i8.as_pointer()), index.type.count
    n_at_once = min(bits // element.width, n)
    result = ir.VectorType(element, n_at_once)
    parts = [
        read(builder, memory, shuffle(builder, index, index, range(at, at + n_at_once)), result)
        for at in range(0, n, n_at_once)
    ]
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffle(builder, *pair, range(size)) for pair in pairs]
    return parts[0]


@intrinsic
def lookup_far(typingctx, table, index):
    """``table[index]`` lane by lane out of memory; table a C-contiguous int32 array, index of i32 lanes."""

    def codegen_(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return _entries(builder, data, args[1], i32)

    return signature(index, table, index), codegen_


@intrinsic
def lookup_far_pair(typingctx, table, index):
    """Entries of two words: ``table[2 * index]`` and ``table[2 * index + 1]`` as `lookup_far` has them."""
    pair, both = types.UniTuple(index, 2), 2 * index.lanes

    def codegen_(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        entries = _entries(builder, data, args[1], i64)
        entries = builder.bitcast(entries, ir.VectorType(i32, both))
        words = [shuffle(builder, entries, entries, range(first, both, 2)) for first in (0, 1)]
        return context.make_tuple(builder, pair, words)

    return signature(pair, table, index), codegen_


def _lookup16_words_avx512(builder, table, index):
    table = shuffle(builder, table, table, [*range(16), *range(16)])
    index = builder.zext(index, u16x32.llvm)
    return call(builder, "llvm.x86.avx512.permvar.hi.512", u16x32.llvm, [table, index])


def _lookup16_words_avx2(builder, table, index):
    """The low and the high bytes each by vpshufb, then put together."""
    table = builder.bitcast(table, u8x32.llvm)
    parts = []
    for byte in range(2):
        lanes = [2 * (i % 16) + byte for i in range(32)]
        args = [shuffle(builder, table, table, lanes), index]
        parts.append(call(builder, "llvm.x86.avx2.pshuf.b", u8x32.llvm, args))
    lanes = [i // 2 + 32 * (i % 2) for i in range(64)]
    return builder.bitcast(shuffle(builder, parts[0], parts[1], lanes), u16x32.llvm)


def _lookup16_words_by_lane(builder, table, index):
    result = ir.Constant(u16x32.llvm, ir.Undefined)
    for lane in range(32):
        entry = builder.and_(builder.extract_element(index, i32(lane)), i8(15))
        result = builder.insert_element(result, builder.extract_element(table, entry), i32(lane))
    return result


_LOOKUP16_WORDS = {
    "avx512": _lookup16_words_avx512,
    "avx2": _lookup16_words_avx2,
    "portable": _lookup16_words_by_lane,
}


@intrinsic
def lookup16_words(typingctx, table, index):
    """u16x32 of ``table[index]``; table u16x16, index u8x32 of 0 to 15."""
    return simple(
        lambda builder, t, i: _LOOKUP16_WORDS[LEVEL](builder, t, i), u16x32, u16x16, u8x32
    )


def _bytes16_avx2(builder, table, index):
    half = ir.VectorType(i8, 32)
    parts = []
    for start in range(0, index.type.count, 32):
        lanes = range(start, start + 32)
        args = [shuffle(builder, x, x, lanes) for x in (table, index)]
        parts.append(call(builder, "llvm.x86.avx2.pshuf.b", half, args))
    return parts[0] if len(parts) == 1 else shuffle(builder, *parts, range(64))


_BYTES16 = {
    "avx512": lambda builder, table, index: call(
        builder, "llvm.x86.avx512.pshuf.b.512", table.type, [table, index]
    ),
    "avx2": _bytes16_avx2,
    "portable": lambda builder, table, index: _by_lane(builder, table, index, 8),
}


@intrinsic
def bytes16(typingctx, table, index):
    """Byte lookup within each group of 16: ``table[16 * (i // 16) + index[i]]``, 0 <= index < 16."""
    return simple(lambda builder, t, i: _BYTES16[LEVEL](builder, t, i), table, table, table)
