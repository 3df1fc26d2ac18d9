"""Every call of a group, checked on one rank against what all ranks' arrays say: for threads and for processes."""

import numpy as np

import lowlevel
from lowlevel import Pool

SIZES = (1, 65, 5 * 1024, 7 * 1000 + 3)


def values(rank, n, dtype="float32"):
    """What a rank has: of many magnitudes, so that the order of a sum can be seen."""
    rng = np.random.default_rng([rank, n])
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(dtype)


def in_order(parts):
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def check_calls(comm, dtypes=("float32",)):
    """Raise unless all calls do what they say, and take what they plan."""
    device = comm.device
    comm.reserve(max(comm.plan("all_gather", n, "float32").staging_bytes for n in SIZES) + 65536)
    for dtype in dtypes:
        for n in SIZES:
            check_sum(comm, n, dtype)
    for n in SIZES:
        mine, all_values = values(comm.rank, n), [values(r, n) for r in range(comm.size)]
        x = lowlevel.asarray(mine.copy(), device)
        out = lowlevel.asarray(np.zeros((comm.size, n), "f4"), device)
        np.testing.assert_array_equal(lowlevel.asnumpy(comm.all_gather(x, out)), all_values)
        root = n % comm.size
        np.testing.assert_array_equal(lowlevel.asnumpy(comm.broadcast(x, root)), all_values[root])
        if comm.size > 1:
            check_ring(comm, n)
    assert comm.share(comm.rank) == list(range(comm.size))


def check_sum(comm, n, dtype):
    mine = values(comm.rank, n, dtype)
    expected = in_order([values(rank, n, dtype) for rank in range(comm.size)])
    x = lowlevel.asarray(mine, comm.device)
    plan = comm.plan("all_reduce", x.shape, x.dtype)
    with Pool(plan.scratch_bytes, device=comm.device) as pool:
        comm.all_reduce(x, pool=pool)
        assert pool.peak == plan.scratch_bytes and not pool.used
        np.testing.assert_array_equal(lowlevel.asnumpy(x), expected)


def check_ring(comm, n):
    """Each sends to the next; the even ones first."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    x = lowlevel.asarray(values(comm.rank, n), comm.device)
    out = lowlevel.asarray(np.zeros(n, "f4"), comm.device)
    if comm.rank % 2 == 0:
        comm.send(x, after)
    comm.receive(out, before)
    if comm.rank % 2:
        comm.send(x, after)
    np.testing.assert_array_equal(lowlevel.asnumpy(out), values(before, n))
