"""Blocks of 32 weights with an importance matrix: scales, minima and levels of Q4_0, Q4_1, Q5_0 and Q5_1, which these pack.

The variance is that of a whole row here, as in ggml: a block does not depend on itself alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .importance import FIRST, N_STEPS, STEP_SIZE, mean_square, read_importance, weigh
from .lanes import LANES, clamped_int, read_lanes
from .search import search_scale, search_scale_and_minimum

if TYPE_CHECKING:
    from ...formats import BlockFormat

BLOCK_WEIGHTS = 32


def make_quantize(
    plain: Callable[[int, int, np.ndarray], None], block: BlockFormat, highest: int
) -> Callable[..., None]:
    """The quantiser of a format: ``plain(address, n_blocks, out)`` without an importance matrix, `_quantize_weighed` with one."""

    def quantize(
        address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
    ) -> None:
        if importance:
            records = out.view(block.block_dtype)
            _quantize_weighed(address, n_blocks, records, importance, row_blocks, highest)
        else:
            plain(address, n_blocks, out)

    return quantize


def _quantize_weighed(address, n_blocks, records, importance, row_blocks, highest):
    """Fill the records of `n_blocks` blocks: d, m where they have it, qs, and qh where levels have five bits.

    Parameters
    ----------
    address, n_blocks, importance, row_blocks
        As of the quantisers.
    records : array of a format's `block_dtype`, (n_blocks,)
    highest : int
        Of the levels 0 to 15 or 31; of formats without minima the middle one stands for zero.
    """
    d, m = np.empty(n_blocks, np.float32), np.zeros(n_blocks, np.float32)
    levels = np.empty((n_blocks, BLOCK_WEIGHTS), np.uint8)
    has_minima = "m" in (records.dtype.names or ())
    _fit(address, n_blocks, importance, row_blocks, highest, has_minima, d, m, levels)
    with np.errstate(over="ignore"):  # who called looks for infinite scales
        records["d"] = d
        if has_minima:
            records["m"] = m
    records["qs"] = levels[:, :16] & 15 | (levels[:, 16:] & 15) << 4
    if highest > 15:
        records["qh"] = np.packbits(levels >> 4, axis=1, bitorder="little")


@kernel(allocates=True)
def _fit(address, n_blocks, importance, row_blocks, highest, has_minima, d, m, levels):
    n = BLOCK_WEIGHTS
    x, weights = np.empty(LANES * n, np.float32), np.empty(LANES * n, np.float32)
    work, found = np.empty(LANES * n, np.float32), np.empty(LANES * n, np.int32)
    variances, scales = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    minima = np.empty(LANES, np.float32)
    half = (highest + 1) // 2
    row, variance = -1, np.float32(0.0)
    for block in range(0, n_blocks, LANES):
        n_here = min(LANES, n_blocks - block)
        read_lanes(x, address, block * n, n, n_here)
        read_importance(weights, importance, block, n_here, row_blocks, n, 1)
        variances[:] = 0
        for lane in range(n_here):
            if (block + lane) // row_blocks != row:
                row = (block + lane) // row_blocks
                variance = mean_square(address, row * row_blocks * n, row_blocks * n)
            variances[lane] = variance
        weigh(x, weights, variances, n)
        if has_minima:
            scale, low, inverse, base = search_scale_and_minimum(
                x, weights, work, n, highest, FIRST, STEP_SIZE, N_STEPS, False
            )
            simd.store(minima, 0, low)
            for i in range(n):
                v = simd.load_f32x16(x, LANES * i)
                simd.store(found, LANES * i, clamped_int(inverse * (v - base), 0, highest))
        else:
            scale, inverse = search_scale(x, weights, n, half)
            # All weights as good as zero: ggml leaves the levels at the lowest, next to a scale of zero.
            empty = simd.select(inverse == np.float32(0.0), simd.splat(0), simd.splat(half))
            for i in range(n):
                v = simd.load_f32x16(x, LANES * i)
                level = clamped_int(inverse * v, -half, half - 1) + empty
                simd.store(found, LANES * i, level)
        simd.store(scales, 0, scale)
        for lane in range(n_here):
            d[block + lane] = scales[lane]
            if has_minima:
                m[block + lane] = minima[lane]
            for i in range(n):
                levels[block + lane, i] = found[LANES * i + lane]
