"""Q4_1: a scale, a minimum and 32 weights of four bits."""

from ...formats import block_format
from .table4 import make_table_decoder

DECODER = make_table_decoder(block_format("Q4_1"))
