"""What a transfer takes, from sizes alone: all of it is taken before the first byte moves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel import checks, plans
from lowlevel.pool.arena import align_up
from lowlevel.shapes import array_layout, dtype_name

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from lowlevel.plans import Scratch
    from lowlevel.shapes import Shape

CALLS = ("all_reduce", "all_gather", "broadcast", "send", "receive")
# How bytes go from rank to rank: copies between devices of one process, NCCL, MPI on the arrays themselves, MPI by way
# of memory of the host.
COPIES, NCCL, MPI, MPI_STAGED = "copies", "nccl", "mpi", "mpi, staged"
ENGINES = (COPIES, NCCL, MPI, MPI_STAGED)
# Ranks' shares of a sum are whole multiples of so many items: kernels start at a cache line.
SHARE_UNIT = 64


class Outline(NamedTuple):
    """A rank of a group as plans see it: nothing has to be there yet.

    Attributes
    ----------
    engine : str
        One of `ENGINES`.
    size, rank : int
    """

    engine: str = COPIES
    size: int = 1
    rank: int = 0


ALONE = Outline()


@dataclass(frozen=True)
class CommPlan:
    """The plan of one transfer.

    Attributes
    ----------
    call, path : str
        One of `CALLS`; one of `ENGINES`, by which it goes.
    shape, dtype : tuple of int, str
        Of this rank's array.
    share : int
        Items of it that each rank adds up, the last one what is left; 0: no sum, or the engine's own.
    order : str
        In which order numbers are added.
    scratch : tuple of (str, int)
        Of the pool.
    staging_bytes : int
        Of the host's memory that `Comm.reserve` takes.
    """

    call: str
    path: str
    size: int
    shape: tuple[int, ...]
    dtype: str
    share: int
    order: str
    scratch: Scratch
    staging_bytes: int

    @property
    def scratch_bytes(self) -> int:
        """What the pool's use grows by, to the byte."""
        return plans.taken(self.scratch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "call": self.call,
            "path": self.path,
            "n_ranks": self.size,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "order": self.order,
            "scratch": plans.shown(self.scratch),
            "scratch_bytes": self.scratch_bytes,
            "staging_bytes": self.staging_bytes,
        }


def plan_transfer(call: str, shape: Shape, dtype: DTypeLike, outline: Outline) -> CommPlan:
    """Plan one transfer of an array of this rank.

    Parameters
    ----------
    call : str
        One of `CALLS`.
    shape, dtype
        Of this rank's array: of what it gives, for "receive" of what it gets.
    outline : Outline
        Of the group: `Comm.outline`.

    Returns
    -------
    CommPlan

    Raises
    ------
    TypeError, ValueError
        A name that is none, a shape or dtype that is none; sums of other numbers than floats.
    """
    checks.choice(call, "call", CALLS)
    sizes, kind, n_bytes = array_layout(shape, dtype)
    engine, n_ranks = outline.engine, outline.size
    share, order, scratch, staging = 0, "", (), 0
    if call == "all_reduce":
        if dtype_name(kind) not in checks.FLOATS:
            raise TypeError(f"dtype: sums are of {', '.join(checks.FLOATS)}; got {kind}")
        n_items = n_bytes // kind.itemsize
        order = "NCCL's own, the same on all ranks" if engine == NCCL else "rank by rank from 0 on"
        if engine != NCCL and n_ranks > 1:
            share = share_of(n_items, n_ranks)
            scratch = (("parts", (n_ranks - 1) * share * kind.itemsize),) if n_items else ()
    if engine == MPI_STAGED and n_ranks > 1:
        whole = n_bytes * (n_ranks if call == "all_gather" else 1)
        staging = align_up(whole) + plans.taken(scratch)
    return CommPlan(call, engine, n_ranks, sizes, dtype_name(kind), share, order, scratch, staging)


def share_of(n_items: int, n_ranks: int) -> int:
    """Items that each rank adds up; the last ranks have fewer, or none."""
    each = -(-n_items // n_ranks)
    return -(-each // SHARE_UNIT) * SHARE_UNIT


def shares(n_items: int, share: int, n_ranks: int) -> list[slice]:
    """Each rank's items."""
    ends = np.minimum(np.arange(n_ranks + 1) * share, n_items).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]
