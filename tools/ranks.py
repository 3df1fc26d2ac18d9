"""Subcommands under ``mpirun``: what ranks divide, which of them speaks, and how they end together."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from .options import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from lowlevel.comm import Comm

    _Result = TypeVar("_Result")

# Options in which ranks may differ: where the file lies there, what that machine has.
_OF_A_RANK = ("model", "device", "threads", "budget", "comm")
# Seconds in which the first rank, where a terminal interrupts all, can say how far it came before another ends it.
FIRST_SPEAKS = 3.0


def add_option(parser: Any) -> None:
    """The option that says what ranks divide."""
    from quant.models.ranks import SPLITS

    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="under mpirun: what the ranks divide, each with its share of the weights: whole layers (layer), "
        "heads and feed-forward columns (tensor), or keys and those columns (context); of a list of devices each "
        "rank of a machine has one; the first rank prints",
    )


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Within it `comm_of` gives this process's end of what ``mpirun`` started, and only the first rank prints.

    An error ends all ranks, with a line that says whose it was; one that all have been told of is raised here.
    """
    from lowlevel.comm import mpi_rank, started_by_mpi

    if not hasattr(args, "split") or not (args.split or started_by_mpi()):
        yield
        return
    if not started_by_mpi():
        raise UsageError(
            f"--split {args.split}: it divides a model among ranks; start them by mpirun -n 2 kqcap {args.command} ..."
        )
    try:
        names = (getattr(args, "device", None) or "cpu").split(",")
        comm = mpi_rank(names if len(names) > 1 else names[0])
    except ImportError as error:
        raise UsageError(str(error)) from None
    try:
        with _quiet(comm.rank > 0):
            args.comm = comm if comm.size > 1 or args.split else None
            _check_alike(comm, args)
            _share_threads(comm, args)
            if len(names) > 1:
                args.device = comm.device
            if args.comm is not None and args.split is None:
                comm.together(lambda: _refuse(comm))
            yield
    except BaseException as error:
        if not getattr(error, "on_all_ranks", False):
            if isinstance(error, KeyboardInterrupt) and comm.rank:
                time.sleep(FIRST_SPEAKS)
            comm.fail(error)
        raise
    finally:
        comm.close()


def end_others(args: argparse.Namespace) -> None:
    """An interrupt may have met this rank alone, while others wait for it: it ends all."""
    if comm_of(args) is not None:
        raise KeyboardInterrupt


def comm_of(args: argparse.Namespace) -> Comm | None:
    """This process's end of its group; None: it is alone."""
    return getattr(args, "comm", None)


def is_first(args: argparse.Namespace) -> bool:
    """Whether this process is the one that prints and writes."""
    comm = comm_of(args)
    return comm is None or comm.rank == 0


def of_first(args: argparse.Namespace, make: Callable[[], _Result]) -> _Result:
    """What `make` gives on the first rank, for all: it alone has standard input."""
    comm = comm_of(args)
    if comm is None:
        return make()
    mine = comm.together(lambda: make() if comm.rank == 0 else None)
    return comm.share(mine)[0]


def _check_alike(comm, args):
    """Raise UsageError, on all ranks, where mpirun gave them other options: one would wait for what another skips."""
    own = {name: repr(value) for name, value in vars(args).items() if name not in _OF_A_RANK}
    first, *others = comm.share(own)
    for rank, other in enumerate(others, start=1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                error = UsageError(
                    f"{name}: {first.get(name)} on rank 0, {other.get(name)} on rank {rank}; all ranks run alike"
                )
                error.on_all_ranks = True  # type: ignore[attr-defined]
                raise error


def _refuse(comm):
    raise UsageError(f"--split: mpirun started {comm.size} ranks; say what they divide")


def _share_threads(comm, args):
    """As many threads as processors, for all ranks that may use the same ones together."""
    if args.threads or comm.device != "cpu":
        return
    allowed = os.sched_getaffinity(0)
    mine = socket.gethostname(), tuple(sorted(allowed))
    least = min(comm.share(max(1, len(allowed) // comm.share(mine).count(mine))))
    args.threads = [least] if args.command == "bench" else least


@contextlib.contextmanager
def _quiet(is_silent):
    """Nothing is printed within it, where that is asked for."""
    if not is_silent:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = nothing
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
