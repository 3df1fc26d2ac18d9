"""Ranks under mpiexec: the same calls as between threads, and that no rank is left waiting."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
SOON = 120  # seconds, of which starting Python takes most on a machine that has other things to do


def mpiexec(n, *arguments):
    """(exit code, standard output, standard error, seconds) of n ranks of Python with some arguments."""
    beside = pathlib.Path(sys.executable).with_name("mpiexec")
    command = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert command, "pip install mpich"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    begun = time.monotonic()
    done = subprocess.run(
        [command, "-n", str(n), sys.executable, *arguments],
        capture_output=True, text=True, timeout=500, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begun


def child(n, *arguments):
    return mpiexec(n, str(HERE / "mpi_child.py"), *arguments)


@pytest.mark.parametrize("n, device", [(2, "cpu"), (3, "cpu"), (2, "cudasim")])
def test_calls(n, device):
    """Arrays of a device go through memory of the host that was taken before."""
    code, out, error, _ = child(n, "calls", device)
    assert code == 0, error
    assert sorted(out.splitlines()) == [f"held {rank} {n}" for rank in range(n)]


def test_ranks_that_disagree_are_told():
    """Of transfers that would mix up bytes or wait for ever; those behind them find all in order."""
    code, out, error, _ = child(2, "disagrees", "cpu")
    assert code == 0, error
    assert sorted(out.splitlines()) == ["held 0 2", "held 1 2"]


@pytest.mark.parametrize("what", ["raises", "dies"])
def test_a_rank_that_ends_ends_all(what):
    code, _, error, seconds = child(2, what, "cpu")
    assert code != 0 and seconds < SOON
    assert what == "dies" or "OSError: the disk is gone" in error


def test_what_one_rank_refuses_all_refuse():
    code, _, error, seconds = child(2, "refuses", "cpu")
    assert code != 0 and seconds < SOON
    assert "ZeroDivisionError" in error and "RankError: rank 0: ZeroDivisionError" in error
