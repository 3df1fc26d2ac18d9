"""Q5_1: a scale, a minimum and 32 weights of five bits."""

from ...formats import block_format
from .five_bits import make_five_bit_decoder

DECODER = make_five_bit_decoder(block_format("Q5_1"))
