"""What products on the CPU know of each block format, by GGUF's name: from the file of that name."""

import importlib

from ...formats import FORMATS

_MODULES = {
    block.name: importlib.import_module(f".{block.name.lower()}", __package__)
    for block in FORMATS.values()
    if not block.is_float
}
LAYOUTS = {name: module.LAYOUT for name, module in _MODULES.items()}
UNPACKERS = {name: module.unpack for name, module in _MODULES.items()}  # see unpack.py
