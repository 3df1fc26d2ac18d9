"""IQ4_NL: a scale and 32 weights of four bits, each one of 16 uneven values."""

from ...formats import block_format
from .table4 import make_table_decoder

DECODER = make_table_decoder(block_format("IQ4_NL"))
