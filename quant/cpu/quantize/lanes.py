"""Sixteen sub-blocks side by side: how the quantisers' kernels hold weights.

A quantiser's sub-block (16 or 32 weights that share a scale) occupies one lane, and weight i of
all sixteen sub-blocks is one vector: ``x[16 * i + lane]``. Nothing is ever summed across lanes, so
every sub-block sees float32 additions in the order of ggml's scalar loops, and the results are
ggml's to the bit although sixteen of them are found at once.

Weights are read by address: a kernel is compiled once whether the caller's array is writable,
memory-mapped or a slice. Callers keep the array alive.
"""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

LANES = 16
# Blocks whose largest weight is smaller count as zero.
SMALLEST_PEAK = np.float32(1e-15)
_ROUNDER = np.float32(3 * 2**22)


@kernel(inline=True)
def nearest_int(v):
    """Nearest integer, ties to even, of lanes with ``|v| < 2**22``.

    Done on the bits as ggml does, so that even infinity (-2**22) and NaN (0), which tiny weights
    can lead to, give what they give there.
    """
    return (simd.as_i32x16(v + _ROUNDER) & 0x7FFFFF) - 0x400000


@kernel(inline=True)
def clamped_int(v, low, high):
    """`nearest_int`, kept in low ... high, as i32x16."""
    return simd.maximum(simd.minimum(nearest_int(v), simd.splat(high)), simd.splat(low))


@kernel(inline=True)
def clamped(v, low, high):
    """`clamped_int` as f32x16."""
    return simd.to_f32(clamped_int(v, low, high))


@kernel(inline=True)
def read_lanes(x, address, first, n_weights, n_lanes):
    """Lay `n_lanes` sub-blocks of `n_weights` side by side in `x`; lanes beyond hold zeros.

    `first` is the number, counted in float32 behind `address`, of the first sub-block's first
    weight; the sub-blocks follow each other.
    """
    for lane in range(n_lanes):
        for i in range(n_weights):
            x[LANES * i + lane] = simd.read_f32(address, first + n_weights * lane + i)
    for lane in range(n_lanes, LANES):
        for i in range(n_weights):
            x[LANES * i + lane] = np.float32(0.0)


@kernel(inline=True)
def peaks(x, n_weights):
    """Largest ``|x|`` of every lane, and the weight it belongs to (the first such one)."""
    largest = simd.splat(np.float32(0.0))
    peak = simd.splat(np.float32(0.0))
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        size = simd.absolute(v)
        larger = size > largest
        largest = simd.select(larger, size, largest)
        peak = simd.select(larger, v, peak)
    return largest, peak


@kernel(inline=True)
def largest_lane(v):
    """The lane of largest size, with its sign (the first such one)."""
    largest, peak = np.float32(0.0), np.float32(0.0)
    for lane in range(LANES):
        x = simd.extract(v, lane)
        if abs(x) > largest:
            largest, peak = abs(x), x
    return peak


@kernel(inline=True)
def write_half(out, offset, value):
    """Store a float32 as two bytes of IEEE half; returns the half's value."""
    bits = simd.f32_to_half(value)
    out[offset] = bits & 0xFF
    out[offset + 1] = bits >> 8
    return simd.half_to_f32(bits)


@kernel(inline=True)
def write_fifth_bits(out, offset, low, high):
    """The fifth bits of 32 levels, two i32x16, in four bytes, the first level's lowest."""
    for byte in range(2):
        low_bits = high_bits = 0
        for i in range(8):
            low_bits |= (simd.extract(low, 8 * byte + i) >> 4 & 1) << i
            high_bits |= (simd.extract(high, 8 * byte + i) >> 4 & 1) << i
        out[offset + byte] = low_bits
        out[offset + 2 + byte] = high_bits


@kernel(inline=True)
def write_crumbs(out, offset, levels):
    """Pack a super-block's 256 levels of two bits (i32, in lanes) as Q2_K and Q3_K keep them.

    Byte ``32 * half + i`` holds weight i of four consecutive groups of 32.
    """
    for half in range(2):
        for odd in range(2):
            lane = 8 * half + odd
            for i in range(16):
                k = LANES * i + lane
                byte = levels[k] | levels[k + 2] << 2 | levels[k + 4] << 4 | levels[k + 6] << 6
                out[offset + 32 * half + 16 * odd + i] = byte
