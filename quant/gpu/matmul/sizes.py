"""Rows of weights that a block of each kernel of quant.matmul takes, and its shared memory, as the kernels' headers have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..constants import constants
from ..instances import WGMMA_ROWS

if TYPE_CHECKING:
    from ...formats import BlockFormat
    from ..instances import Tile, WgmmaTile


EXACT_COLUMNS = 32  # kExactColumns
_EXACT_ROWS = 32  # kExactRows
_FLOAT_UNIT_BYTES = 16
_DEPTH = 256  # kDepth
_STAGES = 2  # kStages
# Of matmul_wgmma.cuh: kMostShared, kMostStages, kBarrierBytes, kLine.
_WGMMA_SHARED, _WGMMA_STAGES, _BARRIER_BYTES, _LINE_BYTES = 227 << 10, 6, 128, 128


def _unit(block):
    """(weights, bytes) of a block, and its units; of floats, 16 bytes are one."""
    if block.is_float:
        return _FLOAT_UNIT_BYTES // block.block_bytes, _FLOAT_UNIT_BYTES, 1
    return block.block_weights, block.block_bytes, constants(block).units


def stream_sizes(block: BlockFormat, exact: bool, n_columns: int, n_warps: int) -> tuple[int, int]:
    """(rows of weights that a warp takes at once, shared memory of a thread block): see Stream, ByteSums."""
    n_weights, n_bytes, units = _unit(block)
    chunk = 32 // units * n_bytes
    if exact:
        at_once = 2 if n_columns == 1 else 1
    else:
        chunk *= 2 if n_weights == 32 else 1  # a lane takes two blocks
        few = chunk > 1500 or n_columns >= constants(block).few_from
        at_once = (2 if n_columns > 2 else 1) * (1 if few and n_columns != 2 else 2)
    return at_once, n_warps * _STAGES * at_once * (chunk + 16)


def lanes_of_row(block: BlockFormat, columns: int) -> int:
    """Lanes of a warp with work for a row, where those of whole rows make 32; else 32: see ByteSums."""
    n_weights, _, units = _unit(block)
    of_lane = (2 if n_weights == 32 else 1) * n_weights // units
    lanes, rest = divmod(columns, of_lane)
    return lanes if rest == 0 and lanes % units == 0 and 0 < lanes < 32 and 32 % lanes == 0 else 32


def exact_sizes(block: BlockFormat) -> tuple[int, int]:
    """(rows of weights of a thread block, its shared memory): see ExactTile."""
    n_weights, n_bytes, _ = _unit(block)
    depth = max(64, n_weights)
    raw = 16 * ((depth // n_weights * n_bytes + 30) // 16)
    return _EXACT_ROWS, 4 * (_EXACT_ROWS + EXACT_COLUMNS) * (depth + 4) + _EXACT_ROWS * raw


def tile_sizes(block: BlockFormat, tile: Tile) -> tuple[int, int]:
    """(rows of weights of a thread block, its shared memory): see Tile in matmul_tiles.cuh."""
    n_weights, n_bytes, _ = _unit(block)
    rows, columns, n_blocks = tile.threads // 4, tile.columns, _DEPTH // n_weights
    skew = 14 if constants(block).alignment > 1 else 15
    raw = 16 * ((n_blocks * n_bytes + skew + 15) // 16)
    shared = 2 * rows * raw + (2 * columns + rows) * (_DEPTH + 16) + 4 * n_blocks * (rows + columns)
    # A factor for each run of a super-block, minima, sums of x.
    shared += 4 * rows * constants(block).run_factors
    if constants(block).minima and n_blocks > 1:  # a scale of each block, a sum of x
        shared += 4 * n_blocks * (rows + columns)
    elif constants(block).minima:
        shared += (4 + 16) * rows + 36 * columns
    if constants(block).fold_offset > 0:
        shared += 4 * columns
    return rows, shared


def wgmma_shared(block: BlockFormat, tile: WgmmaTile) -> int:
    """Shared memory of a thread block: see WgmmaTile."""
    raw_bytes = _DEPTH // block.block_weights * block.block_bytes
    raw_pitch = 16 * ((raw_bytes + 30) // 16 | 1)
    rest = 2 * WGMMA_ROWS * raw_pitch + _BARRIER_BYTES
    stage = (WGMMA_ROWS + tile.columns) * _LINE_BYTES
    return min((_WGMMA_SHARED - rest) // stage, _WGMMA_STAGES) * stage + rest
