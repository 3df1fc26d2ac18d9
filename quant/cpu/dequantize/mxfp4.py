"""MXFP4: a power of two and 32 weights of four bits (E2M1), each one of 16 values."""

from ...formats import block_format
from .table4 import make_table_decoder

DECODER = make_table_decoder(block_format("MXFP4"))
