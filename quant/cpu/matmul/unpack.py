"""Blocks of 16 weight rows as vectors of bytes and row scales: what formats' files share.

A format's file has one function, ``unpack(put, put_scaled, end, state, rows, at) -> state``, and the `LAYOUT` of
what it hands over (layouts.py). It goes
through one block of the 16 rows whose addresses (int64) stand at `rows`, from byte `at` of each row
on, and hands over what it finds, together with the state, through three functions that return the
new state:

``put(state, offset, v)``
    A dword vector: lane r holds four consecutive bytes of row r. `offset` is its place in a panel:
    64 bytes a vector, the weights in order, then the mins.
``put_scaled(state, offset, q, shift, factor)``
    Four dword vectors in whose bytes the two bits from `shift` on are to be multiplied by `factor` (i32
    lanes); the products still fit into bytes.
``end(state, segment, scales)``
    A segment (a run of weights with one scale) is complete; its row scales as f32x16.

Segments come in order; the vectors of a segment in any order. The bytes are the stored integers,
shifted to be unsigned; the `LAYOUT` states segments and shift. Where they
fit into a byte, the integer scales of the format are multiplied in (Q2_K, Q3_K):
``q * scale + shift`` of four bytes at once is one 32-bit multiplication and one addition, since no
byte of the result leaves 0..255 and so none carries into the next.
"""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from . import lanes
from .bits import TWO_BITS

# ---------------------------------------------------------------- into a panel
# The last two of a state, here and below, say what to fetch meanwhile: an address, and how many
# bytes it moves on with every vector. Fetches are spread out because the CPU keeps only some two
# dozen of them in flight and stops at the next one.


@kernel(inline=True)
def _store(state, offset, v):
    panel, scales, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(panel + offset, v)
    return panel, scales, ahead + step, step


@kernel(inline=True)
def _store_scaled(state, offset, q, shift, factor):
    state = _store(state, offset, ((q[0] >> shift) & TWO_BITS) * factor)
    state = _store(state, offset + 64, ((q[1] >> shift) & TWO_BITS) * factor)
    state = _store(state, offset + 128, ((q[2] >> shift) & TWO_BITS) * factor)
    return _store(state, offset + 192, ((q[3] >> shift) & TWO_BITS) * factor)


@kernel(inline=True)
def _store_scales(state, segment, scales):
    panel, scales_at, ahead, step = state
    simd.prefetch(ahead)
    lanes.put(scales_at + segment * 64, scales)
    return panel, scales_at, ahead + step, step


@kernel(inline=True)
def to_panel(unpack, rows, at, panel, scales, ahead, fetch_step):
    """A block's vectors to `panel`, its row scales, 16 float32 a segment, to `scales`.

    Meanwhile a block of 16 other rows is fetched, from address `ahead` on.
    """
    unpack(_store, _store_scaled, _store_scales, (panel, scales, ahead, fetch_step), rows, at)


# ---------------------------------------------------------------- straight into a product
# The state: the running total, the integer sums of the segment, where its activations lie, and
# what to fetch.


@kernel(inline=True)
def _dot(state, offset, v):
    total, sums, x, x_scales, x_starts, ahead, step = state
    simd.prefetch(ahead)
    sums = lanes.dot_column(sums, v, x + offset // 16)
    return total, sums, x, x_scales, x_starts, ahead + step, step


@kernel(inline=True)
def _dot_scaled(state, offset, q, shift, factor):
    """The bits stay where they are: shifting the sum is cheaper, and as exact."""
    total, sums, x, x_scales, x_starts, ahead, step = state
    x_at, bits = x + offset // 16, TWO_BITS << shift
    simd.prefetch(ahead)
    run = lanes.dot_column(simd.splat(0), q[0] & bits, x_at)
    run = lanes.dot_column(run, q[1] & bits, x_at + 4)
    simd.prefetch(ahead + 2 * step)
    run = lanes.dot_column(run, q[2] & bits, x_at + 8)
    run = lanes.dot_column(run, q[3] & bits, x_at + 12)
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


@kernel(inline=True)
def to_product(unpack, rows, at, total, x, x_scales, x_starts, ahead, step):
    """`total` with the product of a block of 16 rows and of one row of x added.

    Meanwhile a block of 16 other rows is fetched, from address `ahead` on, `fetch_step` bytes a vector.
    """
    state = (total, lanes.splat_i32(x_starts), x, x_scales, x_starts, ahead, step)
    return unpack(_dot, _dot_scaled, _add_segment, state, rows, at)[0]
