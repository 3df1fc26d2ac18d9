"""Where decoded weights go: float32 or float16, through the caches or past them.

A format's ``decode_blocks`` is written once and handed a writer. Formats of up to four bits give a
table of 16 values and 32 codes (float16 then costs less than float32: the table is rounded, not
the weights), others 16 values at a time. There are two families of writers for that:

``VALUES``: ``write(destination, index, values)``
    16 float32 values (plain floats: also one) become the weights from number `index` on, counted
    from the address `destination`.
``TABLE``: ``write(destination, index, table, codes)``
    32 codes (u8x32, 0 to 15) become ``table[codes]``, the weights from number `index` on; table
    f32x16.

Each family is a dictionary of `Writers` by the way the weights take, see `WAYS`.
"""

from typing import NamedTuple

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


class Way(NamedTuple):
    """How vectors are stored: the bytes that addresses must be a multiple of, and the store.

    Streamed stores go past the caches, which wins for outputs larger than those. At an address
    that is not aligned as it must be, the process dies.
    """

    alignment: int
    store: object


WAYS = {
    "cached": Way(1, simd.write_at),
    "streamed": Way(64, simd.stream_at),
    # NumPy aligns its large arrays to 16 bytes only.
    "streamed in pieces": Way(16, simd.stream_pieces_at),
}


class Writers(NamedTuple):
    """The writers of one family and way, by output type."""

    float32: object
    float16: object


def _make_value_writers(store):
    @kernel(inline=True)
    def write_float32(destination, index, values):
        store(destination + 4 * index, values)

    @kernel(inline=True)
    def write_float16(destination, index, values):
        store(destination + 2 * index, simd.f32_to_half(values))

    return Writers(write_float32, write_float16)


def _make_table_writers(store):
    @kernel(inline=True)
    def write_float32(destination, index, table, codes):
        first = simd.lookup16(table, simd.widen(simd.lower_half(codes)))
        second = simd.lookup16(table, simd.widen(simd.upper_half(codes)))
        store(destination + 4 * index, first)
        store(destination + 4 * index + 64, second)

    @kernel(inline=True)
    def write_float16(destination, index, table, codes):
        store(destination + 2 * index, simd.lookup16_words(simd.f32_to_half(table), codes))

    return Writers(write_float32, write_float16)


VALUES = {name: _make_value_writers(way.store) for name, way in WAYS.items()}
TABLE = {name: _make_table_writers(way.store) for name, way in WAYS.items()}
