"""What a product takes: its scratch, section by section.

Everything here follows from shapes alone (never from the values in `experts`), so that the plan
can be made before there is any data and equals what the call takes to the byte.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.cpu.threads import resolve_n_threads
from lowlevel.plans import sections, shown
from lowlevel.pool.arena import align_up

from .block_formats import LAYOUTS
from .layouts import (
    BYTE_CHUNK,
    FLOAT_CHUNK,
    FLOAT_PIECE,
    FORM,
    LANES,
    ROWS,
    VECTORS,
    WIDTHS,
    Job,
    PanelLayout,
)
from .tables import most_of

if TYPE_CHECKING:
    from lowlevel.devices import Device

    from ...formats import BlockFormat


# Below this many multiply-adds (plus the cost of unpacking) per worker a helper thread is not
# worth waking up.
_WORTH_A_WORKER = 1 << 21
_UNPACK_COST = 8
_CACHE_LINE = 64
# Up to so many columns a matrix, memory is what products wait for: two workers read 20 GB/s taking turns at every task
# and 26 by stretches of half a MiB (of 28; Xeon with AMX, IQ4_NL). Nor are there fewer rounds of stretches, for even shares.
_FEW_COLUMNS, _STRETCH_BYTES, _LEAST_ROUNDS = 8, 1 << 19, 4
_FLOAT_LAYOUT = PanelLayout(1, 0, 0, 0)
# Two tiles of the form "pairs", after the panel.
_TILES_BYTES = 2 * 4 * ROWS * WIDTHS[-1] if FORM == "pairs" else 0


@dataclass(frozen=True, eq=False)
class Part:
    """What the product with one matrix, or one stack of them, takes and does.

    Attributes
    ----------
    name : str
        The format's.
    exact : bool
        Whether x stays float32.
    copies_x : bool
        Whether the row of x is copied to where cache lines begin: one load in two would span two.
    n_workers : int
    stretch : int
        Tasks that a worker takes at a time.
    job : numpy.ndarray of int64
        A `Job` but for what only the call knows (0 here); addresses are offsets into the scratch.
    starts : dict
        Where the scratch's sections begin, in bytes.
    scratch_bytes : int
    """

    name: str
    exact: bool
    copies_x: bool
    n_workers: int
    stretch: int
    job: np.ndarray
    starts: dict
    scratch_bytes: int

    @functools.cached_property
    def job_address(self) -> int:
        return self.job.ctypes.data


@dataclass(frozen=True, eq=False)
class MatmulPlan:
    """How one product runs: a `lowlevel.plans.Plan`.

    Attributes
    ----------
    path : str
        "single": one row of x, multiplied as it is read; "panels": weights are unpacked for many rows at a
        time; "by expert": the first where no expert that is asked for meets more than one row, else the second.
    activations : str
        What x becomes: "int8" or "float32".
    n_workers : int
        Threads, at most.
    parts : tuple of Part
        One matrix or stack after another, in one scratch.
    scratch : tuple of (str, int)
        Tag and bytes of the sections of one block, of the part that takes most.
    scratch_bytes : int
    """

    path: str
    activations: str
    n_workers: int
    parts: tuple
    scratch: tuple
    scratch_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON."""
        return dict(
            path=self.path,
            activations=self.activations,
            n_workers=self.n_workers,
            scratch=shown(self.scratch),
            scratch_bytes=self.scratch_bytes,
        )


def uses_floats(name: str, exact: bool) -> bool:
    """Whether x stays float32: asked for, or a float format."""
    return exact or name not in LAYOUTS


def plan_matmul(
    n: int,
    block: BlockFormat,
    shapes: tuple[tuple[int, ...], ...],
    activations: str | None,
    n_threads: int | None,
    device: Device,
) -> MatmulPlan:
    """The `MatmulPlan` of n rows of x and weights of a format.

    Parameters
    ----------
    n : int
    block : BlockFormat
    shapes : tuple of (rows, columns) or (experts, rows, columns)
        Matrices or stacks that are multiplied in one call.
    activations : str or None
        None: int8, but with a float format float32.
    n_threads : int or None
        As callers give it.
    device : CpuDevice

    Raises
    ------
    TypeError, ValueError
        No number of threads, or activations that there are no kernels for.
    """
    if activations == "bfloat16":
        raise ValueError("activations: on the CPU 'int8' or 'float32', got 'bfloat16'")
    return _plan(n, block, shapes, activations == "float32", resolve_n_threads(n_threads))


@functools.lru_cache(maxsize=512)
def _plan(n, block, shapes, exact, n_threads):
    has_experts = len(shapes[0]) == 3
    parts = tuple(
        _part(n, block, *shape[-2:], shape[0] if has_experts else None, exact, n_threads)
        for shape in shapes
    )
    largest = max(parts, key=lambda part: part.scratch_bytes)
    floats = uses_floats(block.name, exact)
    if floats and not block.is_float:
        path = "panels"  # there are no others for float32 x and blocks
    elif n == 1:
        path = "single"
    else:
        path = "by expert" if has_experts else "panels"
    return MatmulPlan(
        path=path,
        activations="float32" if floats else "int8",
        n_workers=max(part.n_workers for part in parts),
        parts=parts,
        scratch=sections(largest.starts, largest.scratch_bytes),
        scratch_bytes=largest.scratch_bytes,
    )


def _part(n, block, n_rows, columns, n_experts, exact, n_threads):
    """The `Part` of n rows of x times (n_experts,) n_rows x columns weights; n_experts None: a plain matrix."""
    n_slots, n_groups, n_matrices = most_of(n, n_experts, columns)
    n_panels = -(-n_rows // ROWS)
    work = n_panels * ROWS * columns * (n + n_matrices * _UNPACK_COST)
    n_workers = max(1, min(n_threads, n_panels * n_matrices, work // _WORTH_A_WORKER))
    stretch = 1
    if n_slots <= n_matrices * _FEW_COLUMNS:
        stretch = _stretch_of(n_panels * n_matrices, n_workers, ROWS * block.row_bytes(columns))
    exact = uses_floats(block.name, exact)
    copies_x = block.is_float and n == 1
    sizes = {
        "job": 8 * len(Job._fields),
        "x_rows": 8 * n_slots,
        "out_rows": 8 * n_slots,
        "groups": 16 * n_groups,
        "matrices": 24 * n_matrices,
    }
    if exact:
        chunk, piece = FLOAT_CHUNK, FLOAT_PIECE if block.is_float else block.block_weights
        panel = ROWS * 4 * chunk + _spare_bytes(block)
        sizes["x_bytes"] = 4 * columns if copies_x else 0
    else:
        layout = LAYOUTS[block.name]
        chunk, piece = BYTE_CHUNK, block.block_weights
        panel = ROWS * (layout.panel_bytes + 4 * layout.n_scales) * (chunk // piece) + _TILES_BYTES
        n_blocks = columns // block.block_weights
        sizes["x_bytes"] = n_slots * n_blocks * layout.x_panel_bytes
        sizes["x_scales"] = n_slots * n_blocks * layout.n_scales * 4
        sizes["x_starts"] = n_slots * n_blocks * layout.n_starts * 4
    worker_bytes = 8 * ROWS + panel
    sizes["workers"] = n_workers * worker_bytes
    starts, at = {}, 0
    for name, size in sizes.items():
        starts[name] = at
        at += -(-size // _CACHE_LINE) * _CACHE_LINE
    known = dict(
        columns=columns,
        piece=piece,
        chunk=chunk,
        n_rows=n_rows,
        piece_bytes=piece // block.block_weights * block.block_bytes,
        worker_bytes=worker_bytes,
        n_panels=n_panels,
        vectors=VECTORS,
        stretch=stretch,
    )
    layout = LAYOUTS.get(block.name, _FLOAT_LAYOUT)
    fields = [known.get(f, starts.get(f, getattr(layout, f, 0))) for f in Job._fields]
    job = np.array(fields, np.int64)
    return Part(block.name, exact, copies_x, n_workers, stretch, job, starts, align_up(at))


def _stretch_of(n_tasks, n_workers, task_bytes):
    """Tasks of a stretch where weights are read about as fast as memory gives them."""
    at_best = max(1, _STRETCH_BYTES // max(1, task_bytes))
    n_rounds = max(_LEAST_ROUNDS, -(-n_tasks // (n_workers * at_best)))
    return max(1, -(-n_tasks // (n_workers * n_rounds)))


def _spare_bytes(block):
    """Memory for one unpacked block of a vector of rows."""
    layout = LAYOUTS.get(block.name)
    if layout is None:
        return 0
    return LANES * (layout.panel_bytes + 4 * layout.n_scales)
