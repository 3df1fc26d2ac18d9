"""float32 -> IQ3_S: d (half); of every 4 weights the number of an entry, its high bit apart; signs; scales of 32 in 4 bits."""

import numpy as np

from ...formats import block_format
from .grid_search import joined, rule_of, search

FORMAT = block_format("IQ3_S")
RULE = rule_of(
    "IQ3_S",
    even_signs=False, tries=9, step=0.2, from_fit=False, refit=1, smallest=0,
    variance=2, mean_share=0, fudge=1.033,
)  # fmt: skip


def quantize_iq3_s(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 110 a block)."""
    found = search("IQ3_S", RULE, address, n_blocks, importance, row_blocks)
    records = out.view(FORMAT.block_dtype)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = found.d
    records["qs"] = found.numbers & 255
    records["qh"] = joined(found.numbers >> 8, 8, 1)
    records["signs"] = found.signs
    records["scales"] = joined(found.scales, 2, 4)
