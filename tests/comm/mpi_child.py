"""What tests start by mpiexec: ``mpi_child.py WHAT DEVICE``."""

import os
import signal
import sys

import numpy as np
from comm_calls import check_calls

from lowlevel.comm import RankError, mpi_rank

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
elif what == "disagrees":
    x, other = np.ones(8, "f4"), np.ones(12, "f4")
    calls = {
        "at ('collect', 12,": (lambda: comm.all_reduce(x), lambda: comm.broadcast(other)),
        "sends 32 bytes, out has": (lambda: comm.send(x, 1), lambda: comm.receive(other, 0)),
        "of another dtype": (
            lambda: comm.send(x, 1),
            lambda: comm.receive(other.view("i4")[:8], 0),
        ),
    }
    for message, of_rank in calls.items():
        try:
            of_rank[comm.rank]()
        except RankError as error:
            assert comm.rank == 0 or message in str(error) or "rank 1 at" in str(error), error
            assert (other == 1).all()
        else:
            assert comm.rank == 0 and not message.startswith("at"), message
    check_calls(comm)  # nothing is left on its way
    print(f"held {comm.rank} {comm.size}\n", end="", flush=True)
elif what == "refuses":
    comm.together(lambda: [][comm.rank - 1 :] or 1 // comm.rank)
