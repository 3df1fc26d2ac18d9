"""The tables that codes of IQ formats are numbers of: each entry stands for eight weights or four.

They are the gguf package's own, which packs them; a test holds them to checksums.
"""

from __future__ import annotations

import functools

import gguf
import numpy as np

# Of seven sign bits the eighth is such that their number is even: ggml's ksigns_iq2xs.
EVEN_SIGNS = tuple(i | (i.bit_count() & 1) << 7 for i in range(128))


@functools.cache
def grid(name: str) -> np.ndarray:
    """The table of a format.

    Parameters
    ----------
    name : str
        ``"IQ2_XXS"``, ``"IQ2_XS"``, ``"IQ2_S"``, ``"IQ3_XXS"``, ``"IQ3_S"`` or ``"IQ1_S"`` (IQ1_M's too).

    Returns
    -------
    numpy.ndarray of int8, (entries, 8 or 4)
        Not to be written to.
    """
    packed = getattr(gguf.quants, name)
    n_entries, per_entry = packed.grid_shape
    levels = np.array(packed.grid_map, np.int8)
    bits = max(2, (len(levels) - 1).bit_length())
    bits = 4 if bits == 3 else bits  # a nibble each
    codes = np.frombuffer(bytes.fromhex(packed.grid_hex.decode()), np.uint8)
    codes = codes[:, None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
    result = levels[codes.reshape(n_entries, per_entry)]
    result.flags.writeable = False
    return result
