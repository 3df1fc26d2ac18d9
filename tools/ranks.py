"""Subcommands under ``mpirun``: what ranks divide, which of them speaks, and how they end together."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from .options import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from lowlevel.comm import Comm

    _Result = TypeVar("_Result")


def add_option(parser: Any) -> None:
    """The option that says what ranks divide."""
    from quant.models.ranks import SPLITS

    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="under mpirun: what the ranks divide, each with its share of the weights: heads and feed-forward "
        "columns (tensor), or keys and those columns (context); the first rank prints",
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
        comm = mpi_rank(getattr(args, "device", None) or "cpu")
    except ImportError as error:
        raise UsageError(str(error)) from None
    try:
        with _quiet(comm.rank > 0):
            _share_threads(comm, args)
            args.comm = comm if comm.size > 1 or args.split else None
            if args.comm is not None and args.split is None:
                comm.together(lambda: _refuse(comm))
            yield
    except BaseException as error:
        if not getattr(error, "on_all_ranks", False):
            comm.fail(error)
        raise
    finally:
        comm.close()


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


def _refuse(comm):
    raise UsageError(f"--split: mpirun started {comm.size} ranks; say what they divide")


def _share_threads(comm, args):
    """As many threads as processors, for all ranks that may use the same ones together."""
    if args.threads:
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
