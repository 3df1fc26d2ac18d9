"""float32 -> IQ2_XXS: d (half); of every 32 weights four numbers of entries, signs and a scale in 8 bytes."""

import numpy as np

from ...formats import block_format
from .grid_search import ALIKE, joined, rule_of, search

FORMAT = block_format("IQ2_XXS")
RULE = rule_of(
    "IQ2_XXS",
    even_signs=True, tries=6, step=0.1, from_fit=True, refit=2, smallest=1e-15,
    variance=1, mean_share=0, fudge=1,
)  # fmt: skip


def quantize_iq2_xxs(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 66 a block)."""
    if not importance:
        importance, row_blocks = ALIKE.ctypes.data, 1
    found = search("IQ2_XXS", RULE, address, n_blocks, importance, row_blocks)
    records = out.view(FORMAT.block_dtype)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = found.d
    words = records["qs"].view("<u4").reshape(-1, 8, 2)
    words[..., 0] = joined(found.numbers, 4, 8)
    words[..., 1] = joined(found.signs & 127, 4, 7) | found.scales.astype(np.uint32) << 28
