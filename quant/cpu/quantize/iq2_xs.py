"""float32 -> IQ2_XS: d (half); of every 8 weights the number of an entry and signs in 2 bytes; scales of 16 in 4 bits."""

import numpy as np

from ...formats import block_format
from .grid_search import ALIKE, joined, rule_of, search

FORMAT = block_format("IQ2_XS")
RULE = rule_of(
    "IQ2_XS",
    even_signs=True, tries=9, step=0.1, from_fit=False, refit=0, smallest=1e-15,
    variance=1, mean_share=0, fudge=1,
)  # fmt: skip


def quantize_iq2_xs(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 74 a block)."""
    if not importance:
        importance, row_blocks = ALIKE.ctypes.data, 1
    found = search("IQ2_XS", RULE, address, n_blocks, importance, row_blocks)
    records = out.view(FORMAT.block_dtype)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = found.d
    records["qs"] = found.numbers | (found.signs & np.uint16(127)) << 9
    records["scales"] = joined(found.scales, 2, 4)
