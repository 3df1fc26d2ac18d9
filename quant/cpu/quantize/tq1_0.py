"""float32 -> TQ1_0: 48 bytes of five digits in base 3, 4 of four, d (half)."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import write_half
from .scalar import inverse_of, peak_of, round_away

FORMAT = block_format("TQ1_0")
BLOCK_WEIGHTS, BLOCK_BYTES = FORMAT.block_weights, FORMAT.block_bytes
_QS, _QH, _D = FORMAT.offsets("qs", "qh", "d")
# (first weight, first byte, bytes, digits): of so many bytes the first digits follow each other, then the second ones.
_RUNS = ((0, _QS, 32, 5), (160, _QS + 32, 16, 5), (240, _QH, 4, 4))


@kernel
def quantize_tq1_0(address, n_blocks, out):
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 54 a block)."""
    for block in range(n_blocks):
        first, o = block * BLOCK_WEIGHTS, block * BLOCK_BYTES
        d = peak_of(address, first, BLOCK_WEIGHTS)
        inverse = inverse_of(d)
        write_half(out, o + _D, d)
        for start, at, n_bytes, n_digits in _RUNS:
            for i in range(n_bytes):
                number = 0
                for digit in range(5):
                    number *= 3
                    if digit < n_digits:
                        weight = simd.read_f32(address, first + start + n_bytes * digit + i)
                        number += round_away(weight * inverse) + 1
                # As a fraction of 256, rounded up: so that a product with a power of 3 brings a digit to the front.
                out[o + at + i] = (number * 256 + 242) // 243
