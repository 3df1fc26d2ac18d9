"""Dense floats by address, as float32: ``read_*(address)`` 16 side by side, ``read_one_*`` a single one."""

from . import simd
from .jit import kernel


@kernel(inline=True)
def read_f32(address):
    return simd.read_f32x16(address, 0)


@kernel(inline=True)
def read_f16(address):
    return simd.half_to_f32(simd.read_u16x16(address))


@kernel(inline=True)
def read_one_f16(address):
    return simd.half_to_f32(simd.read_u16(address))


@kernel(inline=True)
def read_bf16(address):
    return simd.bfloat_to_f32(simd.read_u16x16(address))


@kernel(inline=True)
def read_one_bf16(address):
    return simd.bfloat_to_f32(simd.read_u16(address))
