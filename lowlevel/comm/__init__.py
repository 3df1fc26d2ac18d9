"""Several devices or machines: a group of ranks, and what its members hand one another.

Each rank has a `Comm`, its end of the group, on one device: `local_group` makes those of several devices of one
process, a thread each; `mpi_rank` gives that of a process that ``mpirun`` started. Engines are CUDA's copies between
devices, NCCL and MPI.
"""

from .comm import Comm, RankError
from .local import local_group
from .mpi import mpi_rank, started_by_mpi
from .plan import ALONE, CommPlan, Outline, plan_transfer
from .threads import RankThreads

__all__ = [
    "ALONE",
    "Comm",
    "CommPlan",
    "Outline",
    "RankError",
    "RankThreads",
    "local_group",
    "mpi_rank",
    "plan_transfer",
    "started_by_mpi",
]
