"""F32, F16 and BF16: plain floats, a block being one weight."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .runs import make_decoder
from .writers import VALUES


@kernel(inline=True)
def _decode_f32(write, source, n_blocks, destination):
    whole = n_blocks - n_blocks % 16
    for i in range(0, whole, 16):
        write(destination, i, simd.read_f32x16(source, i))
    for i in range(whole, n_blocks):
        write(destination, i, simd.read_f32(source, i))


def _make_decode_16_bits(convert):
    @kernel(inline=True)
    def decode_blocks(write, source, n_blocks, destination):
        whole = n_blocks - n_blocks % 16
        for i in range(0, whole, 16):
            write(destination, i, convert(simd.read_u16x16(source + 2 * i)))
        for i in range(whole, n_blocks):
            write(destination, i, convert(simd.read_u16(source + 2 * i)))

    return decode_blocks


F32 = make_decoder(_decode_f32, VALUES, 1)
F16 = make_decoder(_make_decode_16_bits(simd.half_to_f32), VALUES, 1)
BF16 = make_decoder(_make_decode_16_bits(simd.bfloat_to_f32), VALUES, 1)
