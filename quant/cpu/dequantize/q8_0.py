"""Q8_0: 32 signed bytes and a scale."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("Q8_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
D, QS = FORMAT.offsets("d", "qs")


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        d = simd.splat_half(simd.read_u16(block + D))
        for half in range(2):
            q = simd.widen_signed(simd.read_u8x16(block + QS + 16 * half))
            write(destination, i * BLOCK_WEIGHTS + 16 * half, simd.to_f32(q) * d)


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
