"""float32 -> IQ3_XXS: d (half); of every 4 weights the number of an entry; of every 32 signs and a scale in 4 bytes."""

import numpy as np

from ...formats import block_format
from .grid_search import joined, rule_of, search

FORMAT = block_format("IQ3_XXS")
RULE = rule_of(
    "IQ3_XXS",
    even_signs=True, tries=15, step=0.2, from_fit=False, refit=0, smallest=1e-8,
    variance=2, mean_share=0, fudge=1.0125,
)  # fmt: skip


def quantize_iq3_xxs(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 98 a block)."""
    found = search("IQ3_XXS", RULE, address, n_blocks, importance, row_blocks)
    records = out.view(FORMAT.block_dtype)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = found.d
    records["qs"] = found.numbers
    signs = joined(found.signs & 127, 4, 7)
    records["scales_and_signs"] = signs | found.scales.astype(np.uint32) << 28
