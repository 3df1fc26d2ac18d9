"""Q4_0: a scale and 32 weights of four bits, less eight."""

from ...formats import block_format
from .table4 import make_table_decoder

DECODER = make_table_decoder(block_format("Q4_0"))
