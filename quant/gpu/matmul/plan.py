"""What a product on a device runs and takes: kernels, tiles and scratch, from shapes alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowlevel.gpu.ops.launch import refuse_n_threads
from lowlevel.plans import sections, shown

from ...formats import FORMATS
from ..constants import constants
from ..instances import (
    EXACT_STREAM_COLUMNS,
    MOST_FEW_ROWS,
    STREAM_COLUMNS,
    TILES,
    WGMMA_ARCHITECTURE,
    WGMMA_ROWS,
    WGMMA_TILES,
)
from .sizes import EXACT_COLUMNS, lanes_of_row, tile_sizes

if TYPE_CHECKING:
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.plans import Scratch

    from ...formats import BlockFormat
    from ..instances import Tile, WgmmaTile


ACTIVATIONS = ("int8", "bfloat16", "float32")
_ALIGNMENT = 256
# Float rows of x end at a multiple of this many values: what two vectors of 16 bytes hold.
_X_MULTIPLE = 8
# Bytes of x for kernels that stream have places for whole chunks: kChunkWeights.
CHUNK_WEIGHTS = 2048
# A row of x of so many values or fewer is made bytes in shared memory, by the kernel that multiplies.
SINGLE_COLUMNS = 16384
# int32 of a row in the table of groups: matrix, first slot, how many.
GROUP_FIELDS = 3
# Of matmul_wgmma.cuh: columns of a step, and slots of the image of x of which groups start at multiples.
STEP, SLOT_MULTIPLE = 64, 8
# What one step of a tile takes, by its rows of x, in units of the largest's.
_STEP_COST = {64: 0.6, 128: 0.7, 256: 1.0}


@dataclass(frozen=True)
class MatmulPlan:
    """How one product runs: a `lowlevel.plans.Plan`.

    Attributes
    ----------
    path : str
        "single": one row of x, as it is; "stream": few rows, every warp streams weights; "few": few rows of x and of
        float weights, a thread block each; "tiles": many rows, on mma.sync or, float32, on plain multiplications;
        "wgmma": many rows on Hopper's warpgroup products.
    activations : str
        What x becomes: one of `ACTIVATIONS`.
    width : int
        Rows of x that meet a matrix in one group at most: what a kernel is made for.
    tile : instances.Tile, instances.WgmmaTile or None
    x_columns, n_slots, most_groups : int
        Values from one prepared row of x to the next; rows that are prepared; groups, at most.
    sections : dict
        Of the scratch: name -> (offset in bytes, dtype, items).
    scratch_bytes : int
    row_lanes : int
        Lanes of a warp that a row of weights has work for; below 32 as many rows as have 32 go together. The run has 32
        for weights whose rows lie apart: a plan is of sizes, and one for weights wherever they lie.
    """

    path: str
    activations: str
    width: int
    tile: Tile | WgmmaTile | None
    x_columns: int
    n_slots: int
    most_groups: int
    sections: dict
    scratch_bytes: int
    row_lanes: int = 32

    @property
    def scratch(self) -> Scratch:
        """(tag, bytes) of each section, whole units of 256 bytes."""
        starts = {name: at for name, (at, _, _) in self.sections.items()}
        return sections(starts, self.scratch_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON."""
        return dict(
            path=self.path,
            activations=self.activations,
            rows_of_x=self.width,
            tile=self.tile and self.tile._asdict(),
            row_lanes=self.row_lanes,
            scratch_bytes=self.scratch_bytes,
            scratch=shown(self.scratch),
        )


def plan_matmul(
    n: int,
    block: BlockFormat,
    shapes: tuple[tuple[int, ...], ...],
    activations: str | None,
    n_threads: int | None,
    device: LaunchDevice,
) -> MatmulPlan:
    """The `MatmulPlan` of n rows of x and weights of a format.

    Parameters
    ----------
    n : int
    block : BlockFormat
    shapes : tuple of (rows, columns) or (experts, rows, columns)
        Matrices or stacks that are multiplied at once.
    activations : str or None
        One of `ACTIVATIONS`; None: what is fastest on the device.
    n_threads : None
    device : KernelDevice

    Raises
    ------
    ValueError
        Activations that the device has no kernels for, or a number of threads.
    """
    refuse_n_threads(device, n_threads)
    shape = shapes[0]
    if len(shapes) > 1:
        shape = (*shape[:-2], sum(each[-2] for each in shapes), shape[-1])
    # What the rows of every matrix are a multiple of: each has launches of its own.
    row_step = math.gcd(*(each[-2] for each in shapes))
    return _plan(
        n, block.qtype, shape, row_step, activations, device.architecture, device.max_shared_bytes,
        device.n_multiprocessors,
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _plan(
    n, qtype, shape, row_step, activations, architecture, max_shared_bytes, n_multiprocessors
):
    block, columns = FORMATS[qtype], shape[-1]
    n_experts = shape[0] if len(shape) == 3 else None
    # A matrix meets so many rows of x, if experts are asked for alike.
    rows_each = n if n_experts is None else -(-n // max(1, n_experts))
    activations = _activations(block, activations, rows_each, architecture)
    tile, width = None, n
    if activations == "bfloat16":
        path = "wgmma"
        tile = _wgmma_tile(rows_each, n, n_experts, shape[-2], n_multiprocessors)
        width = tile.columns
    elif activations == "float32":
        width = _fitting(EXACT_STREAM_COLUMNS, rows_each)
        path, width = ("stream", width) if width else ("tiles", EXACT_COLUMNS)
        if path == "stream" and block.is_float and shape[-2] <= MOST_FEW_ROWS:
            path = "few"
    elif n == 1 and columns <= SINGLE_COLUMNS and n_experts is None:
        path = "single"
    else:
        path, width = "stream", _fitting(STREAM_COLUMNS, rows_each)
        if not width:
            path = "tiles"
            fitting = [t for t in TILES if tile_sizes(block, t)[1] <= max_shared_bytes]
            tile = next((t for t in fitting if rows_each <= t.columns), fitting[-1])
            width = tile.columns
    most_groups = -(-n // width)
    if n_experts is not None:
        most_groups = min(n, min(n, n_experts) + n // width)  # a group has a row at least
    x_columns = -(-columns // _X_MULTIPLE) * _X_MULTIPLE
    n_slots, parts = n, {}
    if path == "wgmma":
        n_slots = -(-n // width) * width
        if n_experts is not None:
            padded = n + (SLOT_MULTIPLE - 1) * min(n, n_experts)
            n_slots = -(-padded // SLOT_MULTIPLE) * SLOT_MULTIPLE + width - SLOT_MULTIPLE
        x_columns = -(-columns // STEP) * STEP
        parts["x"] = "uint8", 2 * n_slots * x_columns
    elif activations == "float32":
        parts["x"] = "float32", n * x_columns
    elif path != "single":
        parts["x"] = "uint8", n * (-(-columns // CHUNK_WEIGHTS) * CHUNK_WEIGHTS)
        parts["x_scales"] = "float32", n * columns // block.block_weights
        if constants(block).sums:
            parts["x_sums"] = "int32", n * columns // 32
    if n_experts is not None:
        parts["order"] = "int32", n_slots
        parts["groups"] = "int32", most_groups * GROUP_FIELDS + 1  # and how many there are
    placed, at = {}, 0
    for name, (dtype, n_items) in parts.items():
        placed[name] = at, dtype, n_items
        n_bytes = n_items * (1 if dtype == "uint8" else 4)
        at += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    row_lanes = lanes_of_row(block, columns) if activations == "int8" and width == 1 else 32
    if row_step % (32 // row_lanes):
        row_lanes = 32  # rows would be left over
    return MatmulPlan(
        path, activations, width, tile, x_columns, n_slots, most_groups, placed, at, row_lanes
    )  # fmt: skip


def _activations(block, asked, rows_each, architecture):
    """What x becomes: float formats meet it as float32."""
    if block.is_float or asked == "float32":
        return "float32"
    has_wgmma = architecture == WGMMA_ARCHITECTURE
    if asked == "bfloat16" and not has_wgmma:
        raise ValueError(
            f"activations: 'bfloat16' needs a GPU of compute capability 9.0, and this one is "
            f"{architecture}; 'int8' and 'float32' will do"
        )
    if asked is None:
        return "bfloat16" if has_wgmma and rows_each > STREAM_COLUMNS[-1] else "int8"
    return asked


def _fitting(widths, n):
    """The least of `widths` that holds n; None if none does."""
    return next((width for width in widths if n <= width), None)


def _wgmma_tile(rows_each, n, n_experts, n_rows, n_multiprocessors):
    """The tile that makes the whole product soonest."""
    if n_experts is not None:  # some experts meet more rows than others
        rows_each += math.isqrt(4 * rows_each)

    def cost(tile):
        groups = -(-rows_each // tile.columns) * (min(n, n_experts) if n_experts else 1)
        n_tiles = groups * -(-n_rows // WGMMA_ROWS)
        return -(-n_tiles // n_multiprocessors) * _STEP_COST[tile.columns]

    return min(WGMMA_TILES, key=cost)
