"""float32 -> Q4_1: d and m (half) and 16 bytes of nibbles."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, write_half
from .search import scale_and_minimum
from .weighed_blocks import make_quantize

FORMAT = block_format("Q4_1")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _M, _LEVELS = FORMAT.offsets("d", "m", "qs")
_HIGHEST = FORMAT.codes[1]


@kernel
def _quantize(address, n_blocks, out):
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        low = simd.read_f32x16(address, block * BLOCK_WEIGHTS)
        high = simd.read_f32x16(address, block * BLOCK_WEIGHTS + LANES)
        d, minimum, inverse, half = scale_and_minimum(low, high, _HIGHEST)
        write_half(out, o + _D, d)
        write_half(out, o + _M, minimum)
        top, base = simd.splat(_HIGHEST), simd.splat(minimum)
        low_level = simd.minimum(simd.to_i32((low - base) * inverse + half), top)
        high_level = simd.minimum(simd.to_i32((high - base) * inverse + half), top)
        simd.store(out, o + _LEVELS, simd.narrow(low_level | high_level << 4))


# Float32 behind an address into blocks of 20 bytes.
quantize_q4_1 = make_quantize(_quantize, FORMAT, 15)
