"""float32 -> NVFP4: 4 scales of eight bits (UE4M3), 32 bytes of nibbles that index a table of 16 levels."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from ..exponents import SMALL_FLOATS
from .mxfp4 import nearest_level

FORMAT = block_format("NVFP4")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
_SUB_BLOCK = FORMAT.sub_block
_HIGHEST = np.float32(6.0)  # of the levels, E2M1
_ZERO = np.float32(0.0)


@kernel(inline=True)
def _small_float(value):
    """The UE4M3 number next to `value`, halves up, at most 448: four bits of exponent, three of mantissa."""
    if not value > _ZERO:
        return 0
    bits = simd.extract(simd.as_i32x16(simd.splat(value)), 0)
    exponent = (bits >> 23) - 127 + 7
    if exponent <= 0:
        return min(int(value * np.float32(512.0) + np.float32(0.5)), 7)
    if exponent >= 15:
        return 0x7E
    # A carry out of the mantissa is one more of the exponent.
    return min((exponent << 3) + (bits >> 20 & 7) + (bits >> 19 & 1), 0x7E)


@kernel
def quantize_nvfp4(address, n_blocks, out):
    """Quantise ``n_blocks * 64`` float32 behind `address` into `out` (uint8, 36 a block)."""
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        for part in range(BLOCK_WEIGHTS // _SUB_BLOCK):
            v = simd.read_f32x16(address, block * BLOCK_WEIGHTS + _SUB_BLOCK * part)
            scale = _small_float(simd.max_lanes(simd.absolute(v)) / _HIGHEST)
            out[o + _D + part] = scale
            levels = nearest_level(v, simd.splat(SMALL_FLOATS[scale]))
            for i in range(8):
                byte = simd.extract(levels, i) | simd.extract(levels, 8 + i) << 4
                out[o + _LEVELS + 8 * part + i] = byte
