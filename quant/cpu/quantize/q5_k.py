"""float32 -> Q5_K: d and dmin (half), 8 scales and minima of 6 bits, 32 bytes of fifth bits, 128 of nibbles."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .lanes import LANES
from .q4_k import make_quantize, write_nibbles

FORMAT = block_format("Q5_K")
_SUB_BLOCK = FORMAT.sub_block
_PER_BLOCK = FORMAT.block_weights // _SUB_BLOCK
_HIGH, _LEVELS = FORMAT.offsets("qh", "qs")


@kernel(inline=True)
def _write_fifth_bits(out, offset, levels, first):
    """Bit s of byte i: the fifth bit of weight i of sub-block s. Levels keep the other four."""
    for i in range(_SUB_BLOCK):
        byte = 0
        for sub_block in range(_PER_BLOCK):
            k = LANES * i + first + sub_block
            byte |= levels[k] >> 4 << sub_block
            levels[k] &= 15
        out[offset + i] = byte


@kernel(inline=True)
def _write_levels(out, o, levels, first):
    _write_fifth_bits(out, o + _HIGH, levels, first)
    write_nibbles(out, o + _LEVELS, levels, first)


# Float32 behind an address into blocks of 176 bytes.
quantize_q5_k = make_quantize(FORMAT, -0.5, 15, _write_levels)
