"""Products of the form "dwords": what becomes of unpacked blocks, and passes over a panel of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import dword_tiles, lanes
from .bits import BYTES_1, HIGH_NIBBLES, TWO_BITS, put_high_nibbles
from .layouts import LANES, STEP, VECTOR
from .places import panel_sizes, places
from .unpack import Sink

if TYPE_CHECKING:
    from .layouts import PanelLayout


# ---------------------------------------------------------------- into a panel
# The last two of a state, here and below, say what to fetch meanwhile: an address, and how many
# bytes it moves on with every vector. Fetches are spread out because the CPU keeps only some two
# dozen of them in flight and stops at the next one.


@kernel(inline=True)
def _store(state, offset, v):
    panel, scales, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(panel + offset * LANES // 16, v)
    return panel, scales, ahead + step, step


@kernel(inline=True)
def _store_two_bits(state, offset, q, shift, factor):
    state = _store(state, offset, ((q[0] >> shift) & TWO_BITS) * factor)
    state = _store(state, offset + 64, ((q[1] >> shift) & TWO_BITS) * factor)
    state = _store(state, offset + 128, ((q[2] >> shift) & TWO_BITS) * factor)
    return _store(state, offset + 192, ((q[3] >> shift) & TWO_BITS) * factor)


@kernel(inline=True)
def _store_scales(state, segment, scales):
    panel, scales_at, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(scales_at + segment * VECTOR, scales)
    return panel, scales_at, ahead + step, step


# ---------------------------------------------------------------- straight into a product
# The state: the running total, the integer sums of the segment, where its activations lie, and
# what to fetch.


@kernel(inline=True)
def _dot(state, offset, v):
    total, sums, x, x_scales, x_starts, ahead, step = state
    simd.prefetch(ahead)
    sums = dword_tiles.dot_column(sums, v, x + offset // 16)
    return total, sums, x, x_scales, x_starts, ahead + step, step


@kernel(inline=True)
def _dot_two_bits(state, offset, q, shift, factor):
    """The bits stay where they are: shifting the sum is cheaper, and as exact."""
    total, sums, x, x_scales, x_starts, ahead, step = state
    x_at, bits = x + offset // 16, TWO_BITS << shift
    simd.prefetch(ahead)
    run = dword_tiles.dot_column(lanes.splat(0), q[0] & bits, x_at)
    run = dword_tiles.dot_column(run, q[1] & bits, x_at + 4)
    simd.prefetch(ahead + 2 * step)
    run = dword_tiles.dot_column(run, q[2] & bits, x_at + 8)
    run = dword_tiles.dot_column(run, q[3] & bits, x_at + 12)
    sums += simd.shift_right_signed(run, shift) * factor
    return total, sums, x, x_scales, x_starts, ahead + 4 * step, step


@kernel(inline=True)
def _add_segment(state, segment, scales):
    """As lanes.add_scaled_tile does it, so that the bits are the same."""
    total, sums, x, x_scales, x_starts, ahead, step = state
    simd.prefetch(ahead)
    scale = scales * lanes.splat_f32(x_scales + 4 * segment)
    total = simd.multiply_add(simd.to_f32(sums), scale, total)
    sums = lanes.splat_i32(x_starts + 4 * segment + 4)
    return total, sums, x, x_scales, x_starts, ahead + step, step


# ---------------------------------------------------------------- what both make of the rest


def _make_sink(put, put_two_bits, end):
    @kernel(inline=True)
    def put_scaled(state, offset, a, b, c, d, factor, least, shift):
        """``q * scale + shift`` of four bytes at once is one 32-bit multiplication and one addition, since no
        byte of the result leaves 0..255 and so none carries into the next."""
        shifted = (factor * least + shift) * BYTES_1
        state = put(state, offset, a * factor + shifted)
        state = put(state, offset + 64, b * factor + shifted)
        state = put(state, offset + 128, c * factor + shifted)
        return put(state, offset + 192, d * factor + shifted)

    @kernel(inline=True)
    def end_scaled(state, segment, d, factor):
        return end(state, segment, d * simd.to_f32(factor))

    @kernel(inline=True)
    def finish(state, d):
        return state

    @kernel(inline=True)
    def end_minimum(state, m):
        return end(state, 1, m)

    @kernel(inline=True)
    def eight(state, offset, mins, last_mins):
        """Eight mins in the places of sixteen."""
        zero = lanes.splat(0)
        state = put(state, offset, mins)
        state = put(state, offset + 64, last_mins)
        state = put(state, offset + 128, zero)
        return put(state, offset + 192, zero)

    @kernel(inline=True)
    def end_eight_minima(state, mins, last_mins, dmin):
        """They meet the high, then the low digits of the sums of x, which are 32 * high + low."""
        state = eight(state, 4096, mins, last_mins)
        state = end(state, 8, dmin * np.float32(-32))
        state = eight(state, 4352, mins, last_mins)
        return end(state, 9, simd.negate(dmin))

    @kernel(inline=True)
    def end_sixteen_minima(state, s, dmin):
        """The mins, 16 * min and min, meet the sums of x, which are 16 * high + low."""
        state = put(state, 4096, s[0] & HIGH_NIBBLES)
        state = put(state, 4160, s[1] & HIGH_NIBBLES)
        state = put(state, 4224, s[2] & HIGH_NIBBLES)
        state = put(state, 4288, s[3] & HIGH_NIBBLES)
        state = put_high_nibbles(put, state, 4352, s)
        return end(state, 1, simd.negate(dmin))

    return Sink(
        put, put_two_bits, put_scaled, end, end_scaled, finish, end_minimum,
        end_eight_minima, end_sixteen_minima,
    )  # fmt: skip


_TO_PANEL = _make_sink(_store, _store_two_bits, _store_scales)
_TO_PRODUCT = _make_sink(_dot, _dot_two_bits, _add_segment)


@kernel(inline=True)
def to_panel(unpack, rows, at, panel, scales, ahead, fetch_step):
    """A block's vectors to `panel`, its row scales, a vector a segment, to `scales`.

    Meanwhile a block of as many other rows is fetched, from address `ahead` on.
    """
    unpack(_TO_PANEL, (panel, scales, ahead, fetch_step), rows, at)


@kernel(inline=True)
def to_product(unpack, rows, at, total, x, x_scales, x_starts, ahead, step):
    """`total` with the product of a block of rows and of one row of x added.

    Meanwhile a block of as many other rows is fetched, from address `ahead` on, `fetch_step` bytes a vector.
    """
    state = (total, lanes.splat_i32(x_starts), x, x_scales, x_starts, ahead, step)
    return unpack(_TO_PRODUCT, state, rows, at)[0]


# ---------------------------------------------------------------- passes over a panel


@kernel(inline=True)
def _segments(total, job, panel, scales, x, x_scales, x_starts, n, steps, width):
    """Add `n` segments of `steps` steps each; returns also the addresses after them."""
    panel_stride, scales_stride = panel_sizes(job)
    for _ in range(n):
        tile = dword_tiles.start_tile(total, x_starts)
        for _ in range(steps):
            tile = dword_tiles.dot_tile(tile, panel, panel_stride, x)
            panel += STEP * LANES
            x += STEP * width
        total = dword_tiles.add_scaled_tile(total, tile, scales, scales_stride, x_scales)
        scales += VECTOR
        x_scales += 4 * width
        x_starts += 4 * width
    return total, panel, scales, x, x_scales, x_starts


@kernel(inline=True)
def pass_bytes(zero, width, job, place):
    """One group of columns over one chunk of k."""
    slot, first, n_k, _, row, n_rows = place
    outs = job.out_rows + 8 * slot
    total = zero
    if first > 0:
        total = lanes.load_tile(zero, outs, row * 4, n_rows)
    panel, scales, x, x_scales, x_starts = places(job, place, width)
    for _ in range(n_k // job.block_weights):
        total, panel, scales, x, x_scales, x_starts = _segments(
            total, job, panel, scales, x, x_scales, x_starts,
            job.n_segments, job.segment_steps, width,
        )  # fmt: skip
        if job.n_min_segments > 0:
            total, panel, scales, x, x_scales, x_starts = _segments(
                total, job, panel, scales, x, x_scales, x_starts,
                job.n_min_segments, job.min_segment_steps, width,
            )  # fmt: skip
    lanes.store_tile(total, outs, row * 4, n_rows)


# ---------------------------------------------------------------- as floats


@kernel(inline=True)
def _weight(dword, i, shift):
    return simd.to_f32(((dword >> (8 * i)) & 255) - shift)


@kernel(inline=True)
def _scale_and_lowest(job, panel, scales, step):
    """Row scales of a step of 16 weights, and what is to be added to them."""
    mins = panel + (job.block_weights + STEP) * LANES  # the plain (low) ones
    min_scale = scales + (job.n_scales - 1) * VECTOR
    scale = lanes.load_floats(scales + (step // job.segment_steps) * VECTOR)
    lowest = lanes.splat(0.0)
    if job.n_min_segments > 0 and job.min_run == 0:
        lowest = lanes.load_floats(min_scale)
    elif job.n_min_segments > 0:
        i = step * STEP // job.min_run
        four = lanes.load_ints(mins + (i // 4) * VECTOR)
        integer = simd.to_f32((four >> (8 * (i % 4))) & 255)
        lowest = integer * lanes.load_floats(min_scale)
    return scale, lowest


# As in pairs.py, for any layout.


def to_panel_of(layout: PanelLayout) -> Any:
    return to_panel


def to_product_of(layout: PanelLayout) -> Any:
    return to_product


def pass_of(layout: PanelLayout) -> Any:
    return pass_bytes


def as_floats_of(layout: PanelLayout) -> tuple[Any, Any]:
    """How bytes of a panel become weights: (integer of byte i of dwords, scale and lowest of a step)."""
    return _weight, _scale_and_lowest
