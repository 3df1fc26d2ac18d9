"""Scales of eight bits: powers of two (E8M0, of MX formats) and small floats (UE4M3, NVFP4's)."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


@kernel(inline=True)
def half_power_of_two(e):
    """Half of 2**(e - 127), float32 lanes of int32 lanes of 0 to 255: of 0 and 1 it is subnormal."""
    zero = e & 0  # in as many lanes
    one = zero + 1
    normal = simd.maximum(e - 1, one) << 23
    subnormal = (zero + 0x00200000) << simd.minimum(e, one)
    return simd.as_floats(simd.select(e > one, normal, subnormal))


def _half_of_small_float(byte):
    """Half of a UE4M3 number: 4 bits of exponent with a bias of 7, 3 of mantissa; the top bit means nothing."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte == 0x7F:  # not a number: counts as zero, as in ggml
        return 0.0
    if exponent == 0:
        return mantissa * 2.0**-10
    return (1 + mantissa / 8) * 2.0 ** (exponent - 8)


# Half of what each byte stands for.
SMALL_FLOATS = np.array([_half_of_small_float(byte) for byte in range(256)], np.float32)
