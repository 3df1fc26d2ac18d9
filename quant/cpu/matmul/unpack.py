"""Blocks of weight rows as vectors of bytes and row scales: what formats' files share.

A format's file has one function, ``unpack(to, state, rows, at) -> state``, and the `LAYOUT` of
what it hands over (layouts.py). It goes through one block of the rows (one a lane) whose addresses (int64)
stand at `rows`, from byte `at` of each row on, and hands over what it finds, together with the state, through the
functions of a `Sink`, which return the new state. Segments and runs come in order, but for those of ``put_two_bits``
and ``put_scaled``; the vectors of a segment in any order. The bytes are the stored integers, shifted to be unsigned:
the `LAYOUT` states segments and shift (0 where the form takes signed bytes).

What sinks do is a matter of the form (layouts.py): dwords.py, pairs.py.
"""

import collections

Sink = collections.namedtuple(
    "Sink",
    "put put_two_bits put_scaled end end_scaled finish end_minimum end_eight_minima end_sixteen_minima",
)
Sink.__doc__ = """Where a block's parts go.

put(state, offset, v)
    A dword vector: lane r holds four consecutive bytes of row r; 16 times its first weight is `offset`.
put_two_bits(state, offset, q, shift, factor)
    16 weights: four dword vectors in whose bytes the two bits from `shift` on are to be multiplied by `factor` (int32
    lanes); the products still fit into bytes.
put_scaled(state, offset, a, b, c, d, factor, least, shift)
    16 weights: codes from 0 on, of which `least` is to be added, then multiplied by `factor`; that and
    `shift` still fits into bytes.
end(state, segment, scales)
    A segment (a run of weights with one scale) is complete; its row scales as floats.
end_scaled(state, segment, d, factor)
    The same where the scale is `d` times an integer of up to 8 bits.
finish(state, d)
    After all segments of ``end_scaled``.
end_minimum(state, m)
    After the block's only segment: `m` is to be added to all its weights.
end_eight_minima(state, mins, last_mins, dmin)
    After all of 256 weights: what is to be subtracted of each 32, times `dmin`, in the bytes of two vectors.
end_sixteen_minima(state, s, dmin)
    The same of each 16, in the high nibbles of four vectors.
"""
