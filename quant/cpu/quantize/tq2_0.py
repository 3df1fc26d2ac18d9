"""float32 -> TQ2_0: 64 bytes of two bits, d (half)."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import write_half
from .scalar import inverse_of, peak_of, round_away

FORMAT = block_format("TQ2_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_QS, _D = FORMAT.offsets("qs", "d")


@kernel
def quantize_tq2_0(address, n_blocks, out):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 66 a block)."""
    for block in range(n_blocks):
        first, o = block * BLOCK_WEIGHTS, block * BLOCK_BYTES
        d = peak_of(address, first, BLOCK_WEIGHTS)
        inverse = inverse_of(d)
        write_half(out, o + _D, d)
        for i in range(64):
            byte, start = 0, first + i // 32 * 128 + i % 32
            for part in range(4):
                level = round_away(simd.read_f32(address, start + 32 * part) * inverse) + 1
                byte |= level << 2 * part
            out[o + _QS + i] = byte
