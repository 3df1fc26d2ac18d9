"""float32 -> Q4_0: d (half) and 16 bytes of nibbles, level 8 meaning zero."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES, write_half
from .search import scale_by_peak
from .weighed_blocks import quantize_weighed

FORMAT = block_format("Q4_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_D, _LEVELS = FORMAT.offsets("d", "qs")
_LOWEST = FORMAT.codes[0]


def quantize_q4_0(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 32`` float32 behind `address` into `out` (uint8, 18 a block)."""
    if importance:
        records = out.view(FORMAT.block_dtype)
        quantize_weighed(address, n_blocks, records, importance, row_blocks, 15)
    else:
        _quantize(address, n_blocks, out)


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
