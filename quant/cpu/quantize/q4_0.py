"""float32 -> Q4_0: d (half) and 16 bytes of nibbles, level 8 meaning zero."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, write_half
from .search import scale_by_peak
from .weighed_blocks import make_quantize

FORMAT = block_format("Q4_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
_LOWEST = FORMAT.codes[0]


@kernel
def _quantize(address, n_blocks, out):
    for block in range(n_blocks):
        o = block * BLOCK_BYTES
        low = simd.read_f32x16(address, block * BLOCK_WEIGHTS)
        high = simd.read_f32x16(address, block * BLOCK_WEIGHTS + LANES)
        d, inverse, offset = scale_by_peak(low, high, _LOWEST)
        write_half(out, o + _D, d)
        top = simd.splat(15)
        low_level = simd.minimum(simd.to_i32(low * inverse + offset), top)
        high_level = simd.minimum(simd.to_i32(high * inverse + offset), top)
        simd.store(out, o + _LEVELS, simd.narrow(low_level | high_level << 4))


# Float32 behind an address into blocks of 18 bytes.
quantize_q4_0 = make_quantize(_quantize, FORMAT, 15)
