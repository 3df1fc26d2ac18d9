"""Ranks that are processes, started by ``mpirun``: transfers by MPI through mpi4py.

Arrays of the host go as they are. Those of a device go as they are where MPI says that it takes CUDA's memory, else by
way of pinned memory of the host, which `reserve` takes before the first of them.
"""

from __future__ import annotations

import os
import sys
import traceback
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import devices
from lowlevel.extras import pip_install
from lowlevel.pool import Pool

from .comm import Comm, RankError, n_bytes_of
from .plan import MPI, MPI_STAGED, Outline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.shapes import Array

# What launchers set in the processes that they start: MPICH's and Intel's, Open MPI's, PMIx (Slurm), Slurm's own.
_SET_BY_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")


def started_by_mpi() -> bool:
    """Whether this process is one that a launcher of MPI has started; MPI itself is not asked."""
    return any(name in os.environ for name in _SET_BY_LAUNCHERS)


def mpi_rank(device: str | Sequence[str] = "cpu", communicator: Any = None) -> Comm:
    """This process's end of the group of all that ``mpirun`` started.

    An error that nobody catches ends all of them from now on: MPI leaves the others waiting otherwise.

    Parameters
    ----------
    device : str or sequence of str
        Where this rank's arrays lie. Several: those of a machine, one for each of its ranks.
    communicator : mpi4py.MPI.Comm, optional
        None: MPI.COMM_WORLD.

    Returns
    -------
    Comm

    Raises
    ------
    ImportError
        mpi4py, or the MPI that it needs, is not installed.
    ValueError
        Fewer devices than ranks on this machine.
    """
    try:
        from mpi4py import MPI as library
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"mpi: mpi4py and an MPI are needed ({error}); {pip_install('mpi')}, and an MPI such as "
            "pip install mpich"
        ) from error
    communicator = library.COMM_WORLD if communicator is None else communicator
    if not isinstance(device, str):
        number = communicator.Split_type(library.COMM_TYPE_SHARED).Get_rank()
        if number >= len(device):
            raise ValueError(
                f"device: {', '.join(device)} for at least {number + 1} ranks on this machine; one a rank is needed"
            )
        device = device[number]
    comm = MpiComm(device, library, communicator)
    _end_all_with_this_process(comm)
    return comm


class MpiComm(Comm):
    """A process among those of an MPI communicator; see `mpi_rank`."""

    def __init__(self, device: str, library: Any, communicator: Any) -> None:
        is_direct = devices.get(device).in_host_memory or _takes_cuda(device, communicator)
        engine = MPI if is_direct else MPI_STAGED
        super().__init__(device, Outline(engine, communicator.Get_size(), communicator.Get_rank()))
        self._mpi, self._communicator = library, communicator
        self._staging: Pool | None = None
        self._own_code, self._codes = np.zeros(1, np.int64), np.zeros(self.size, np.int64)

    def reserve(self, staging_bytes: int) -> None:
        if self._staging is not None and self._staging.budget >= staging_bytes:
            return
        self.close()
        if staging_bytes:
            memory = self._device.pinned(staging_bytes)
            self._staging = Pool(staging_bytes, memory=memory)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def share(self, value: Any) -> list[Any]:
        return self._communicator.allgather(value)

    def fail(self, error: BaseException) -> None:
        print(f"rank {self.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self._communicator.Abort(1)

    # ------------------------------------------------------------ transfers

    def _agree(self, what: tuple[Any, ...]) -> None:
        """Raise RankError, on all ranks, where they are not at one call: MPI would mix up their bytes, or wait."""
        self._own_code[0] = _code(what)
        self._communicator.Allgather(self._own_code, self._codes)
        if (self._codes != self._own_code[0]).any():
            self._refuse_other(what, self.share(what))

    def _scatter(self, flat: Array, own: Sequence[slice], parts: Array) -> None:
        self._agree(("all_reduce", flat.size, flat.dtype.name))
        mine = own[self.rank]
        given = [
            0 if rank == self.rank else n_bytes_of(s, flat.dtype) for rank, s in enumerate(own)
        ]
        taken = [
            0 if rank == self.rank else n_bytes_of(mine, flat.dtype) for rank in range(self.size)
        ]
        starts = [s.start * flat.itemsize for s in own]
        rows = [rank - (rank > self.rank) for rank in range(self.size)]
        row_starts = [min(row, self.size - 2) * parts.shape[1] * flat.itemsize for row in rows]

        def move(source, target):
            kind = self._mpi.BYTE
            send, receive = [source, given, starts, kind], [target, taken, row_starts, kind]
            self._communicator.Alltoallv(send, receive)

        self._through_host(move, reads=flat, writes=parts.reshape(-1))

    def _collect(self, flat: Array, own: Sequence[slice]) -> None:
        self._agree(("collect", flat.size, flat.dtype.name, str(own)))
        counts = [n_bytes_of(items, flat.dtype) for items in own]
        starts = [items.start * flat.itemsize for items in own]

        def move(memory, _):
            target = [memory, counts, starts, self._mpi.BYTE]
            self._communicator.Allgatherv(self._mpi.IN_PLACE, target)

        self._through_host(move, reads=flat, writes=flat, sent=own[self.rank])

    def _send(self, flat: Array, to: int) -> None:
        def move(memory, _):
            self._communicator.Send([memory, self._mpi.BYTE], dest=to, tag=_tag(flat.dtype))

        self._through_host(move, reads=flat)

    def _receive(self, flat: Array, source: int) -> None:
        status = self._mpi.Status()
        message = self._communicator.Mprobe(source=source, status=status)
        n_bytes = status.Get_count(self._mpi.BYTE)
        if n_bytes != flat.nbytes or status.Get_tag() != _tag(flat.dtype):
            message.Recv([np.empty(n_bytes, np.uint8), self._mpi.BYTE])  # the sender waits for it
            kind = "" if status.Get_tag() == _tag(flat.dtype) else " of another dtype"
            raise RankError(
                source,
                f"out: it sends {n_bytes} bytes{kind}, out has room for {flat.nbytes} of {flat.dtype.name}",
            )

        def move(_, memory):
            message.Recv([memory, self._mpi.BYTE])

        self._through_host(move, writes=flat)

    def _through_host(self, move, reads=None, writes=None, sent=slice(None)):
        """``move(source, target)`` on bytes where MPI can take them: those of `reads`, of which the items `sent` go
        out, and of `writes`; one array may be both."""
        if self.outline.engine == MPI:
            self._device.synchronise()
            source, target = (None if a is None else a.view(np.uint8) for a in (reads, writes))
            move(source, target)
            return
        if self._staging is None:
            raise ValueError(
                "staging: transfers of a device's arrays go through the host; reserve the most of their plans' "
                "staging_bytes first"
            )
        with self._staging.scope("staging"):
            source = target = None
            if reads is not None:
                source = self._staging.empty(reads.nbytes, "uint8", tag="sent")
                self._device.download(reads[sent], source.view(reads.dtype)[sent])
            if writes is reads:
                target = source
            elif writes is not None:
                target = self._staging.empty(writes.nbytes, "uint8", tag="received")
            move(source, target)
            if writes is not None:
                self._device.upload(writes.view(np.uint8), target)
                self._device.synchronise()  # the staging is another transfer's from now on


def _code(value):
    """A number by which ranks see whether they have the same value."""
    return zlib.crc32(repr(value).encode())


def _tag(dtype):
    """MPI promises tags up to 32767."""
    return _code(dtype.name) & 0x7FFF


def _takes_cuda(device, communicator):
    """Whether MPI says (since its version 4.1) that it takes pointers of CUDA's memory."""
    if not device.startswith("cuda:") and device != "cuda":
        return False
    kinds = communicator.Get_info().get("mpi_memory_alloc_kinds") or ""
    return any(kind.strip().startswith("cuda") for kind in kinds.split(","))


def _end_all_with_this_process(comm):
    """Let an error that nobody catches end all ranks, unless all have been told of it."""
    before = sys.excepthook

    def hook(kind, error, trace):
        if getattr(error, "on_all_ranks", False):
            before(kind, error, trace)
            return
        traceback.print_exception(kind, error, trace)
        comm.fail(error)

    sys.excepthook = hook
