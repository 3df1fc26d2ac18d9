"""Where decoded weights go: float32 or float16, through the caches or past them.

A format's ``decode_blocks`` is written once and handed one of these. Formats of up to four bits
give a table of 16 values and 32 codes (float16 then costs less than float32: the table is rounded,
not the weights), others 16 values at a time.

Streaming writers go past the caches, which wins for outputs larger than those. What they write
must lie at a multiple of 64 bytes (32 for 16 float16 values), or the process dies.
"""

from typing import NamedTuple

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


class Writers(NamedTuple):
    """Writers for one kind of decode_blocks, by output type and way."""

    float32: object
    float32_streaming: object
    float16: object
    float16_streaming: object


# ---------------------------------------------------------------- writers of values
# write(destination, index, values): 16 float32 values (plain floats: also one) become the weights
# from number `index` on, counted from the address `destination`.


@kernel(inline=True)
def write_f32(destination, index, values):
    simd.write_at(destination + 4 * index, values)


@kernel(inline=True)
def write_f16(destination, index, values):
    simd.write_at(destination + 2 * index, simd.f32_to_half(values))


@kernel(inline=True)
def stream_f32(destination, index, values):
    simd.stream_at(destination + 4 * index, values)


@kernel(inline=True)
def stream_f16(destination, index, values):
    simd.stream_at(destination + 2 * index, simd.f32_to_half(values))


VALUE_WRITERS = Writers(write_f32, stream_f32, write_f16, stream_f16)

# ---------------------------------------------------------------- writers of table entries
# write(destination, index, table, codes): 32 codes (u8x32, 0 to 15) become ``table[codes]``, the
# weights from number `index` on; table f32x16.


@kernel(inline=True)
def _look_up(table, codes):
    first = simd.lookup16(table, simd.widen(simd.lower_half(codes)))
    return first, simd.lookup16(table, simd.widen(simd.upper_half(codes)))


@kernel(inline=True)
def write_table_f32(destination, index, table, codes):
    first, second = _look_up(table, codes)
    simd.write_at(destination + 4 * index, first)
    simd.write_at(destination + 4 * index + 64, second)


@kernel(inline=True)
def write_table_f16(destination, index, table, codes):
    simd.write_at(destination + 2 * index, simd.lookup16_words(simd.f32_to_half(table), codes))


@kernel(inline=True)
def stream_table_f32(destination, index, table, codes):
    first, second = _look_up(table, codes)
    simd.stream_at(destination + 4 * index, first)
    simd.stream_at(destination + 4 * index + 64, second)


@kernel(inline=True)
def stream_table_f16(destination, index, table, codes):
    simd.stream_at(destination + 2 * index, simd.lookup16_words(simd.f32_to_half(table), codes))


TABLE_WRITERS = Writers(write_table_f32, stream_table_f32, write_table_f16, stream_table_f16)
