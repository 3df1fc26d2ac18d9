"""What tests start by mpiexec: ``mpi_child.py WHAT DEVICE``."""

import os
import signal
import sys

import numpy as np
from comm_calls import check_calls

from lowlevel.comm import mpi_rank

what, device = sys.argv[1:]
comm = mpi_rank(device)
if what == "calls":
    check_calls(comm)
    comm.close()
    # One write: those of two ranks may come between each other.
    print(f"held {comm.rank} {comm.size}\n", end="", flush=True)
elif what == "raises":
    if comm.rank == 1:
        raise OSError("the disk is gone")
    comm.all_reduce(np.ones(5, "f4"))
elif what == "dies":
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.all_reduce(np.ones(5, "f4"))
elif what == "refuses":
    comm.together(lambda: [][comm.rank - 1 :] or 1 // comm.rank)
