"""Q5_K: a super-block of 8 x 32 weights of five bits, each 32 with a scale and a minimum."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .q4_k import decode_factors
from .runs import make_decoder
from .writers import VALUES

FORMAT = block_format("Q5_K")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
QH, QS = FORMAT.offsets("qh", "qs")


@kernel(inline=True)
def decode_blocks(write, source, n_blocks, destination):
    """See runs.py. Bit s of qh's byte i is the fifth bit of weight i of sub-block s."""
    for i in range(n_blocks):
        block = source + i * BLOCK_BYTES
        factors = simd.spill(decode_factors(block))
        high = simd.read_u8x32(block + QH)
        for pair in range(4):
            q = simd.read_u8x32(block + QS + 32 * pair)
            for part in range(2):
                sub_block = 2 * pair + part
                codes = (q >> (4 * part)) & 15 | ((high >> sub_block) & 1) << 4
                scale = simd.splat(simd.read_f32(factors, sub_block))
                minus = simd.splat(simd.read_f32(factors, 8 + sub_block))
                index = i * BLOCK_WEIGHTS + 32 * sub_block
                # d * scale * q has at most 22 significant bits: the product is exact
                first = simd.to_f32(simd.widen(simd.lower_half(codes)))
                write(destination, index, simd.multiply_add(scale, first, minus))
                second = simd.to_f32(simd.widen(simd.upper_half(codes)))
                write(destination, index + 16, simd.multiply_add(scale, second, minus))


DECODER = make_decoder(decode_blocks, VALUES, BLOCK_WEIGHTS)
