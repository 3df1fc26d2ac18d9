"""A picture of an arena in characters: which tag holds what lies where."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lowlevel.pool.arena import ALIGNMENT, align_up

if TYPE_CHECKING:
    from typing import Any

    from lowlevel.inspect.state import LiveBlock


FREE = None


class BlockMap(NamedTuple):
    """Cells of equal size, whole units of the arena's alignment, from offset 0 on.

    Attributes
    ----------
    cell_bytes : int
    cells : list of (str or None, float)
        The tag that holds most of a cell (None: all free), and the share of the cell that is taken.
    end : int
        Where the last block ends; above it all is free.
    tags : list of str
        By bytes, the most first.
    """

    cell_bytes: int
    cells: list
    end: int
    tags: list


def block_map(blocks: list[LiveBlock], n_cells: int, size: int | None = None) -> BlockMap:
    """Spread blocks over cells.

    Parameters
    ----------
    blocks : iterable of LiveBlock or Block
    n_cells : int
    size : int, optional
        Bytes to show; None: up to the end of the last block.

    Returns
    -------
    BlockMap
    """
    blocks = [block for block in blocks if block.n_bytes]
    end = max((block.offset + block.n_bytes for block in blocks), default=0)
    cell_bytes = max(ALIGNMENT, align_up(-(-(end if size is None else size) // n_cells)))
    held: Any = [{} for _ in range(-(-end // cell_bytes))]
    totals: dict[Any, Any] = {}
    for block in blocks:
        totals[block.tag] = totals.get(block.tag, 0) + block.n_bytes
        edge = block.offset + block.n_bytes
        for index in range(block.offset // cell_bytes, -(-edge // cell_bytes)):
            start = index * cell_bytes
            overlap = min(edge, start + cell_bytes) - max(block.offset, start)
            held[index][block.tag] = held[index].get(block.tag, 0) + overlap
    cells = [_cell(by_tag, cell_bytes) for by_tag in held]
    if size is not None:
        cells += [(FREE, 0.0)] * (-(-size // cell_bytes) - len(cells))
    tags = sorted(totals, key=lambda tag: (-totals[tag], tag))
    return BlockMap(cell_bytes, cells, end, tags)


def _cell(by_tag, cell_bytes):
    if not by_tag:
        return FREE, 0.0
    tag = max(by_tag, key=lambda tag: (by_tag[tag], tag))
    return tag, sum(by_tag.values()) / cell_bytes
