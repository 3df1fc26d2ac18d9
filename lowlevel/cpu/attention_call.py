"""What attention's kernels are told, and which keys a row may see: the call, the job, tiles, rows of a tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .jit import kernel
from .layout import KEY_STEP
from .simd import emit

# Everything a worker reads, as one record: it travels as a pointer, which compiles far faster than
# a tuple of as many values. Addresses in bytes (0: not given), strides as said.
_CALL_FIELDS = {
    "n_head_kv group n_tokens n_kv d_k d_v": np.int64,  # group: query heads per K/V head
    # the first token's position, and the keys that are there: all, or a decoded chunk (K's and V's
    # addresses count from key 0 all the same)
    "first_position first_key last_key": np.int64,
    # whether tiles go on from, and whether they end at, what "partial results" hold of them
    "resume finish": np.int64,
    # the tile, and its place in scratch in float32 values; see layout.py
    "heads rows keys splits head_tiles row_tiles": np.int64,
    "panel q_depth k_stride v_stride": np.int64,
    "kq_floats chunk_floats tile_floats state_floats": np.int64,
    # operands: address, strides in float32 values
    "q q_head q_token": np.int64,
    "out out_head out_token": np.int64,
    "mask mask_head mask_token mask_key": np.int64,
    "lse lse_head slopes sinks": np.int64,
    # K and V: address, strides in bytes, bytes of one key, address of the fill
    "k k_head k_key k_bytes k_fill": np.int64,
    "v v_head v_key v_bytes v_fill": np.int64,
    "v_column": np.int64,  # V's first column inside K's rows, or -1: V has rows of its own
    "k_direct v_direct": np.int64,  # float32 rows of whole vectors: may be read where they lie
    "causal window": np.int64,
    "scale softcap": np.float32,
}
CALL = np.dtype([(name, kind) for names, kind in _CALL_FIELDS.items() for name in names.split()])


class Tile(NamedTuple):
    """A task: its query rows, and where they lie in the tile block (indices)."""

    head: int
    n_heads: int
    token: int
    n_tokens: int
    q_rows: int
    queries: int
    output: int


class Rows(NamedTuple):
    """Where a worker's row state starts, in 4-byte items of the state block; see layout.py."""

    row_max: int
    row_sum: int
    rescale: int
    slope: int
    low: int
    high: int
    position: int


@kernel(inline=True)
def state_rows(base, padded_rows):
    """The `Rows` of a worker whose state starts at `base`."""
    return Rows(
        base,
        base + padded_rows,
        base + 2 * padded_rows,
        base + 3 * padded_rows,
        base + 4 * padded_rows,
        base + 5 * padded_rows,
        base + 6 * padded_rows,
    )


@kernel(inline=True)
def tile_place(call, tile_number):
    """(K/V head, first query head, heads, first token, tokens) of a tile; last rows come first:
    with causality they have the most keys, and long tasks should not start last."""
    per_row = call.n_head_kv * call.head_tiles
    row_tile = call.row_tiles - 1 - tile_number // per_row
    kv_head = tile_number % per_row // call.head_tiles
    first = tile_number % call.head_tiles * call.heads
    token = row_tile * call.rows
    return (
        kv_head,
        kv_head * call.group + first,
        min(call.heads, call.group - first),
        token,
        min(call.rows, call.n_tokens - token),
    )


@kernel(inline=True)
def padded_rows_of(call):
    """Rows of a tile, with those that fill up its last panel."""
    return -(-(call.heads * call.rows) // call.panel) * call.panel


@kernel(inline=True)
def key_range(state_int, rows, r0, n_rows, key, n_keys):
    """(first, last) key of the chunk that some of `n_rows` rows sees, and whether all see all."""
    low, high = np.int64(2**31), np.int64(0)
    highest_low, lowest_high = np.int64(0), np.int64(2**31)
    for r in range(r0, r0 + n_rows):
        row_low, row_high = np.int64(state_int[rows.low + r]), np.int64(state_int[rows.high + r])
        low, high = min(low, row_low), max(high, row_high)
        highest_low, lowest_high = max(highest_low, row_low), min(lowest_high, row_high)
    first, last = max(low, key), min(high, key + n_keys)
    # Whole register tiles of keys, counted from the chunk's first: none reaches past the chunk.
    first -= (first - key) % KEY_STEP
    return first, last, highest_low <= first and lowest_high >= last


@kernel(inline=True)
def mask_row(call, t, r, key):
    """Address of the mask of the tile's row `r` at key `key`."""
    at = (t.head + r // t.n_tokens) * call.mask_head
    return call.mask + 4 * (at + (t.token + r % t.n_tokens) * call.mask_token + key * call.mask_key)


# What task kernels of attention are given: the address of so many int64, each the address of a record of dtype CALL or of
# one of the scratch blocks of all workers.
JOB = ("call", "kq", "kv chunk", "tile", "row state", "partial results")


@intrinsic
def call_at(typingctx, address):
    """The record of dtype CALL at an address."""
    record = numba.from_dtype(CALL)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(record))

    return record(types.int64), codegen


def _make_array_at(kind: Any) -> Any:
    array = types.Array(kind, 1, "C")

    @intrinsic
    def array_at(typingctx, address):
        """The array from an address on, of any length: nothing looks at it."""

        def codegen(context, builder, sig, args):
            made = context.make_array(array)(context, builder)
            data = builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())
            populate_array(
                made,
                data=data,
                shape=cgutils.pack_array(builder, [emit.i64(1 << 40)]),
                strides=cgutils.pack_array(builder, [emit.i64(4)]),
                itemsize=emit.i64(4),
                meminfo=None,
            )
            return made._getvalue()

        return array(types.int64), codegen

    return array_at


floats_at, ints_at = _make_array_at(types.float32), _make_array_at(types.int32)
