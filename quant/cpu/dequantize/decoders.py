"""The decoder of every format, by GGUF's name: each from the file of that name."""

import importlib

from ...formats import FORMATS
from . import floats


def _decoder(block):
    if block.is_float:
        return getattr(floats, block.name)
    return importlib.import_module(f".{block.name.lower()}", __package__).DECODER


DECODERS = {block.name: _decoder(block) for block in FORMATS.values()}
