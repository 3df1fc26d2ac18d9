"""Products of the form "pairs" (AVX2): what becomes of unpacked blocks, and passes over a panel of them.

In a panel, each block and vector of rows: its bytes; a factor (integer scale) each run; a pair of int16 mins each
pair of sub-blocks. In x, each block: bytes; the sums that meet the mins, in pairs.
"""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING, Any

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes, pair_tiles
from .bits import TWO_BITS
from .layouts import LANES, STEP, VECTOR, VECTORS
from .places import panel_sizes, places
from .unpack import Sink

if TYPE_CHECKING:
    from .layouts import PanelLayout


# Only blocks of so many weights have factors or integer mins.
SUPER_BLOCK = 256
_WORD = 0xFFFF
# Two mins of a dword's bytes as int16: bytes 0 and 2, or of what is a byte further right.
_WORD_BYTES, _WORD_NIBBLES = 0x00FF00FF, 0x000F000F


@kernel(inline=True)
def _twice(factor):
    """An int16 in both words of a lane."""
    return (factor & _WORD) | (factor << 16)


@kernel(inline=True)
def _as_it_is(factor):
    return factor


# In the form that `pair_tiles.scaled` wants: by what runs are summed in.
_FACTORS = {"words": _twice, "dwords": _as_it_is, "signed": _as_it_is}


# Fetches are spread out; if that is often enough, every other vector does one of two steps.


@kernel(inline=True)
def _fetch_seldom(ahead, step, offset):
    if offset & 64 == 0:
        simd.prefetch(ahead)
        ahead += 2 * step
    return ahead


@kernel(inline=True)
def _fetch_often(ahead, step, offset):
    simd.prefetch(ahead)
    return ahead + step


_FETCHES = {True: _fetch_seldom, False: _fetch_often}


def _make_put_scaled(put_run):
    """What is common to both ways: two bits of four vectors, as a run."""

    @kernel(inline=True)
    def put_two_bits(state, offset, q, shift, factor):
        a, b = (q[0] >> shift) & TWO_BITS, (q[1] >> shift) & TWO_BITS
        c, d = (q[2] >> shift) & TWO_BITS, (q[3] >> shift) & TWO_BITS
        return put_run(state, offset, a, b, c, d, factor)

    @kernel(inline=True)
    def put_scaled(state, offset, a, b, c, d, factor, least, shift):
        return put_run(state, offset, a, b, c, d, factor)

    return put_two_bits, put_scaled


# ---------------------------------------------------------------- into a panel


@kernel(inline=True)
def _store_scales(state, segment, scales):
    lanes.put(state[1] + segment * VECTOR, scales)
    return state


@kernel(inline=True)
def _store_d(state, d):
    return _store_scales(state, 0, d)


@kernel(inline=True)
def _store_minimum(state, m):
    return _store_scales(state, 1, m)


@kernel(inline=True)
def _extra(state, i):
    """Where vector `i` after a super-block's bytes lies."""
    return state[0] + (SUPER_BLOCK // 4 + i) * VECTOR


@kernel(inline=True)
def _store_eight_minima(state, mins, last_mins, dmin):
    lanes.put(_extra(state, 8), mins & _WORD_BYTES)
    lanes.put(_extra(state, 9), (mins >> 8) & _WORD_BYTES)
    lanes.put(_extra(state, 10), last_mins & _WORD_BYTES)
    lanes.put(_extra(state, 11), (last_mins >> 8) & _WORD_BYTES)
    return _store_scales(state, 1, simd.negate(dmin))


@kernel(inline=True)
def _store_sixteen_minima(state, s, dmin):
    for i in range(4):
        lanes.put(_extra(state, 16 + 2 * i), (s[i] >> 4) & _WORD_NIBBLES)
        lanes.put(_extra(state, 17 + 2 * i), (s[i] >> 12) & _WORD_NIBBLES)
    return _store_scales(state, 1, simd.negate(dmin))


@functools.cache
def _panel_sink(sums, fetches_seldom):
    as_factor, fetch = _FACTORS[sums], _FETCHES[fetches_seldom]

    @kernel(inline=True)
    def put(state, offset, v):
        panel, scales, ahead, step = state
        lanes.put(panel + offset * LANES // 16, v)
        return panel, scales, fetch(ahead, step, offset), step

    @kernel(inline=True)
    def end_scaled(state, run, d, factor):
        lanes.put(_extra(state, run), as_factor(factor))
        return state

    @kernel(inline=True)
    def put_run(state, offset, a, b, c, d, factor):
        state = put(state, offset, a)
        state = put(state, offset + 64, b)
        state = put(state, offset + 128, c)
        state = put(state, offset + 192, d)
        lanes.put(_extra(state, offset // 256), as_factor(factor))
        return state

    return Sink(
        put, *_make_put_scaled(put_run), _store_scales, end_scaled, _store_d, _store_minimum,
        _store_eight_minima, _store_sixteen_minima,
    )  # fmt: skip


@functools.cache
def _to_panel(sums, fetches_seldom):
    sink = _panel_sink(sums, fetches_seldom)

    @kernel(inline=True)
    def to_panel(unpack, rows, at, panel, scales, ahead, fetch_step):
        """A block's vectors, factors and mins to `panel`, its row scales to `scales`.

        Meanwhile a block of as many other rows is fetched, from address `ahead` on.
        """
        unpack(sink, (panel, scales, ahead, fetch_step), rows, at)

    return to_panel


def to_panel_of(layout: PanelLayout) -> Any:
    return _to_panel(layout.sums, layout.fetches_seldom)


# ---------------------------------------------------------------- straight into a product
# total: float32; sums: of the segment, int32; run: of the run. Where activations lie, and what to fetch.
_State = collections.namedtuple("_State", "total sums run x x_scales x_starts ahead step")


@kernel(inline=True)
def _add(state, segment, sums, scales):
    """The total with the sums of a segment, as pair_tiles.add_scaled_tile does it, so that the bits are the same."""
    scale = scales * lanes.splat_f32(state.x_scales + 4 * segment)
    return simd.multiply_add(simd.to_f32(sums), scale, state.total)


@kernel(inline=True)
def _with_total(state, total, sums):
    return _State(
        total, sums, state.run, state.x, state.x_scales, state.x_starts, state.ahead, state.step
    )


@kernel(inline=True)
def _end_minimum(state, m):
    total = simd.multiply_add(m, lanes.splat_f32(state.x_scales + 4), state.total)
    return _with_total(state, total, state.sums)


@kernel(inline=True)
def _end_eight_minima(state, mins, last_mins, dmin):
    x = state.x + SUPER_BLOCK
    sums = pair_tiles.dot_words_column(lanes.splat(0), mins & _WORD_BYTES, x)
    sums = pair_tiles.dot_words_column(sums, (mins >> 8) & _WORD_BYTES, x + 4)
    sums = pair_tiles.dot_words_column(sums, last_mins & _WORD_BYTES, x + 8)
    sums = pair_tiles.dot_words_column(sums, (last_mins >> 8) & _WORD_BYTES, x + 12)
    return _with_total(state, _add(state, 1, sums, simd.negate(dmin)), state.sums)


@kernel(inline=True)
def _end_sixteen_minima(state, s, dmin):
    sums, x = lanes.splat(0), state.x + SUPER_BLOCK
    for i in range(4):
        sums = pair_tiles.dot_words_column(sums, (s[i] >> 4) & _WORD_NIBBLES, x + 8 * i)
        sums = pair_tiles.dot_words_column(sums, (s[i] >> 12) & _WORD_NIBBLES, x + 8 * i + 4)
    return _with_total(state, _add(state, 1, sums, simd.negate(dmin)), state.sums)


@functools.cache
def _product_sink(sums, has_factors, fetches_seldom):
    as_factor, fetch = _FACTORS[sums], _FETCHES[fetches_seldom]
    start, dot = pair_tiles.make_start(sums), pair_tiles.make_dot_column(sums)

    @kernel(inline=True)
    def put(state, offset, v):
        total, sums, run, x, x_scales, x_starts, ahead, step = state
        run = dot(run, v, x + offset // 16)
        ahead = fetch(ahead, step, offset)
        return _State(total, sums, run, x, x_scales, x_starts, ahead, step)

    @kernel(inline=True)
    def restarted(state, i, sums):
        """With the sums of the segment so far, and run `i` about to begin."""
        total, _, _, x, x_scales, x_starts, ahead, step = state
        return _State(
            total, sums, start(x_starts + 4 * i), x, x_scales, x_starts, ahead, step
        )  # fmt: skip

    @kernel(inline=True)
    def end_scaled(state, i, d, factor):
        sums = state.sums + pair_tiles.scaled(state.run, as_factor(factor))
        return restarted(state, i + 1, sums)

    @kernel(inline=True)
    def put_run(state, offset, a, b, c, d, factor):
        state = restarted(state, offset // 256, state.sums)
        state = put(state, offset, a)
        state = put(state, offset + 64, b)
        state = put(state, offset + 128, c)
        state = put(state, offset + 192, d)
        return end_scaled(state, 0, d, factor)

    @kernel(inline=True)
    def end_of_runs(state, segment, scales):
        return _with_total(state, _add(state, segment, state.sums, scales), lanes.splat(0))

    @kernel(inline=True)
    def end_of_run(state, segment, scales):
        total = _add(state, segment, pair_tiles.summed(state.run), scales)
        return restarted(_with_total(state, total, state.sums), segment + 1, state.sums)

    end = end_of_runs if has_factors else end_of_run

    @kernel(inline=True)
    def finish(state, d):
        return end_of_runs(state, 0, d)

    return start, Sink(
        put, *_make_put_scaled(put_run), end, end_scaled, finish, _end_minimum,
        _end_eight_minima, _end_sixteen_minima,
    )  # fmt: skip


@functools.cache
def _to_product(sums, has_factors, fetches_seldom):
    start, sink = _product_sink(sums, has_factors, fetches_seldom)

    @kernel(inline=True)
    def to_product(unpack, rows, at, total, x, x_scales, x_starts, ahead, step):
        """`total` with the product of a block of rows and of one row of x added.

        Meanwhile a block of as many other rows is fetched, from address `ahead` on, `fetch_step` bytes a vector.
        """
        sums, run = lanes.splat(0), start(x_starts)
        state = _State(total, sums, run, x, x_scales, x_starts, ahead, step)
        return unpack(sink, state, rows, at).total

    return to_product


def to_product_of(layout: PanelLayout) -> Any:
    return _to_product(layout.sums, layout.n_factors > 0, layout.fetches_seldom)


# ---------------------------------------------------------------- passes over a panel


# Steps of a run that are written out one after the other.
_STEPS_IN_ONE = 2


@functools.cache
def _pass(sums_in, has_factors, run_steps):
    in_one = min(run_steps, _STEPS_IN_ONE)
    n_dots = run_steps // in_one
    start_tile = pair_tiles.make_start_tile(sums_in)
    dot_tile = pair_tiles.make_dot_tile(sums_in, in_one)

    @kernel(inline=True)
    def pass_pairs(zero, width, job, place):
        """One group of columns over one chunk of k."""
        slot, first, n_k, memory, row, n_rows = place
        outs = job.out_rows + 8 * slot
        panel_stride, scales_stride = panel_sizes(job)
        panel, scales, x, x_scales, x_starts = places(job, place, width)
        totals = memory + VECTORS * (panel_stride + scales_stride)
        sums = totals + VECTOR * VECTORS * width
        if first > 0:
            pair_tiles.put_tile(lanes.load_tile(zero, outs, row * 4, n_rows), totals)
        else:
            pair_tiles.put_tile(zero, totals)
        for _ in range(n_k // job.block_weights):
            factors = panel + job.block_weights * LANES
            if has_factors:
                pair_tiles.clear_tile(zero, sums)
            for _ in range(job.n_runs):
                tile = start_tile(zero, x_starts)
                for _ in range(n_dots):
                    tile = dot_tile(tile, panel, panel_stride, x)
                    panel += in_one * 4 * VECTOR
                    x += in_one * 16 * width
                x_starts += 4 * width
                if has_factors:
                    pair_tiles.add_run_tile(sums, tile, factors, panel_stride)
                    factors += VECTOR
                else:
                    pair_tiles.add_scaled_tile(totals, tile, scales, scales_stride, x_scales)
                    scales += VECTOR
                    x_scales += 4 * width
            panel = factors
            if has_factors:
                tile = pair_tiles.tile_at(pair_tiles.zero_ints(zero), sums)
                pair_tiles.add_scaled_tile(totals, tile, scales, scales_stride, x_scales)
                scales += VECTOR
                x_scales += 4 * width
            if job.n_min_pairs > 0:
                tile = pair_tiles.zero_ints(zero)
                for _ in range(job.n_min_pairs):
                    tile = pair_tiles.dot_words_tile(tile, panel, panel_stride, x)
                    panel += VECTOR
                    x += 4 * width
                pair_tiles.add_scaled_tile(totals, tile, scales, scales_stride, x_scales)
            elif job.has_min > 0:
                pair_tiles.add_minimum_tile(zero, totals, scales, scales_stride, x_scales)
            scales += VECTOR * job.has_min
            x_scales += 4 * width * job.has_min
        lanes.store_tile(pair_tiles.tile_at(zero, totals), outs, row * 4, n_rows)

    return pass_pairs


def pass_of(layout: PanelLayout) -> Any:
    return _pass(layout.sums, layout.n_factors > 0, layout.run_steps)


# ---------------------------------------------------------------- as floats


@kernel(inline=True)
def _unsigned(dword, i, shift):
    return simd.to_f32(((dword >> (8 * i)) & 255) - shift)


@kernel(inline=True)
def _signed(dword, i, shift):
    return simd.to_f32(simd.shift_right_signed(dword << (24 - 8 * i), 24))


@kernel(inline=True)
def _scale_and_lowest(job, panel, scales, step):
    """Row scales of a step of 16 weights, and what is to be added to them."""
    scale, lowest = lanes.load_floats(scales + step // job.segment_steps * VECTOR), lanes.splat(0.0)
    after = panel + job.block_weights * LANES
    if job.n_factors > 0:
        factor = lanes.load_ints(after + step // job.run_steps * VECTOR)
        scale = scale * simd.to_f32(simd.shift_right_signed(factor << 16, 16))
    if job.has_min > 0:
        lowest = lanes.load_floats(scales + job.n_segments * VECTOR)
    if job.n_min_pairs > 0:
        i = step * STEP // job.min_run
        pair = lanes.load_ints(after + (job.n_factors + i // 4 * 2 + i % 2) * VECTOR)
        lowest = lowest * simd.to_f32((pair >> (8 * (i & 2))) & _WORD)
    return scale, lowest


def as_floats_of(layout: PanelLayout) -> tuple[Any, Any]:
    """How bytes of a panel become weights: (integer of byte i of dwords, scale and lowest of a step)."""
    return _signed if layout.sums == "signed" else _unsigned, _scale_and_lowest
