"""Groups of devices of one process: what they hand one another, in which order, and how they end."""

import contextlib

import numpy as np
import pytest
from comm_calls import check_calls, values

import lowlevel
from lowlevel import cudasim
from lowlevel.comm import RankError, RankThreads, local_group, plan_transfer
from lowlevel.comm.plan import ENGINES, NCCL, Outline


@contextlib.contextmanager
def ranks(*names):
    with RankThreads(local_group(names)) as threads:
        yield threads


@pytest.mark.parametrize("names", [("cpu",), ("cpu",) * 2, ("cpu",) * 3])
def test_calls_on_the_host(names):
    with ranks(*names) as threads:
        threads.run(check_calls)


@pytest.mark.parametrize("n", [2, 3])
def test_calls_between_simulated_devices(n):
    """On streams of their own, which the simulator watches: what no event orders is an error."""

    def on_a_stream(comm):
        with cudasim.Stream() as stream:
            check_calls(comm, ("float32", "float16"))
            stream.synchronise()

    names = [f"cudasim:{index}" for index in range(n)]
    with ranks(*names) as threads:
        threads.run(on_a_stream)


def test_a_sum_takes_one_share_of_each_other_rank():
    plan = plan_transfer("all_reduce", (100, 64), "float32", Outline("copies", 4, 1))
    assert plan.share == 1600 and plan.scratch == (("parts", 3 * 1600 * 4),)
    assert plan.to_dict()["order"].startswith("rank by rank")
    assert plan_transfer("all_reduce", 7, "float32", Outline(NCCL, 4)).scratch_bytes == 0
    for engine in ENGINES:
        assert plan_transfer("all_reduce", 7, "float32", Outline(engine)).scratch_bytes == 0


def test_an_error_of_one_rank_ends_all():
    def call(comm):
        if comm.rank == 1:
            raise OSError("the disk is gone")
        comm.all_reduce(np.ones(5, "f4"))

    with ranks("cpu", "cpu", "cpu") as threads:
        with pytest.raises(OSError, match="the disk is gone"):
            threads.run(call)
        threads.run(check_calls)  # and the next call finds all in order


def test_what_one_rank_refuses_all_refuse():
    def refuse(rank):
        if rank == 1:
            raise lowlevel.BudgetError("pool: too small", requested=2, budget=1)

    def call(comm):
        with pytest.raises((RankError, lowlevel.BudgetError), match="too small"):
            comm.together(lambda: refuse(comm.rank))
        return comm.together(lambda: comm.rank)

    with ranks("cpu", "cpu") as threads:
        assert threads.run(call) == [0, 1]


def test_ranks_that_disagree_are_told():
    with ranks("cpu", "cpu") as threads:
        with pytest.raises(RankError, match=r"rank . at \('all_reduce', 4"):
            threads.run(lambda comm: comm.all_reduce(np.ones(4 + comm.rank, "f4")))
        with pytest.raises(RankError, match=r"out: it sends \(4, 'float32'\), out has room for"):
            threads.run(
                lambda comm: (
                    comm.receive(np.ones(5, "f4"), 0)
                    if comm.rank
                    else comm.send(np.ones(4, "f4"), 1)
                )
            )


BAD = {
    "x: expected float32": lambda c: c.all_reduce(np.ones(3, "i4")),
    "x: expected float32 on cpu, got float16": lambda c: c.all_reduce(np.ones(3, "f2")),
    "x: expected an array without gaps": lambda c: c.all_reduce(np.ones((4, 4), "f4")[:, ::2]),
    "x: expected a NumPy array": lambda c: c.broadcast([1.0]),
    "x: lies on cudasim": lambda c: c.all_reduce(lowlevel.asarray(np.ones(3, "f4"), "cudasim")),
    "out: expected shape": lambda c: c.all_gather(np.ones(3, "f4"), np.ones((3, 3), "f4")),
    "out: expected float32": lambda c: c.all_gather(np.ones(3, "f4"), np.ones((2, 3), "f8")),
    "root: expected an int": lambda c: c.broadcast(np.ones(3, "f4"), 2),
    "to: 0 is this rank itself": lambda c: c.send(np.ones(3, "f4"), 0),
    "source: expected an int": lambda c: c.receive(np.ones(3, "f4"), 5),
    "pool: expected a lowlevel.Pool": lambda c: c.all_reduce(np.ones(3, "f4"), pool=5),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    comm = local_group(["cpu", "cpu"])[0]
    with pytest.raises((TypeError, ValueError), match=message):
        BAD[message](comm)


def test_a_pool_that_is_too_small_is_named():
    comm = local_group(["cpu", "cpu"])[0]
    x = values(0, 1000)
    with lowlevel.Pool(1024) as pool, pytest.raises(lowlevel.BudgetError, match="parts"):
        comm.all_reduce(x, pool=pool)
    np.testing.assert_array_equal(x, values(0, 1000))


def test_groups_that_cannot_be():
    with pytest.raises(ValueError, match="devices: expected all of one kind"):
        local_group(["cpu", "cudasim"])
    with pytest.raises(TypeError, match="devices: expected names"):
        local_group("cpu")
    with pytest.raises(ValueError, match="nccl: for several GPUs"):
        local_group(["cpu", "cpu"], nccl=True)
