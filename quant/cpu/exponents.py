"""Scales of eight bits: powers of two (E8M0, of MX formats)."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


@kernel(inline=True)
def half_power_of_two(e):
    """Half of 2**(e - 127), f32x16 of an i32x16 of 0 to 255: of 0 and 1 it is subnormal."""
    one = simd.splat(1)
    normal = simd.maximum(e - 1, one) << 23
    subnormal = simd.splat(0x00200000) << simd.minimum(e, one)
    return simd.as_f32x16(simd.select(e > one, normal, subnormal))
