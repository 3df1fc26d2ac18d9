"""float32 -> IQ2_S: d (half); of every 8 weights the number of an entry, its high bits apart, and signs; scales of 16 in 4 bits."""

import numpy as np

from ...formats import block_format
from .grid_search import joined, rule_of, search

FORMAT = block_format("IQ2_S")
RULE = rule_of(
    "IQ2_S",
    even_signs=False, tries=9, step=0.1, from_fit=False, refit=0, smallest=1e-8,
    variance=2, mean_share=0.25, fudge=0.9875,
)  # fmt: skip


def quantize_iq2_s(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 82 a block)."""
    found = search("IQ2_S", RULE, address, n_blocks, importance, row_blocks)
    records = out.view(FORMAT.block_dtype)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = found.d
    records["qs"] = found.numbers & 255
    records["signs"] = found.signs
    records["qh"] = joined(found.numbers >> 8, 4, 2)
    records["scales"] = joined(found.scales, 2, 4)
