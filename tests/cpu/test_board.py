"""Task kernels on the board: every task is done once, whoever comes to help, and nobody is at work afterwards."""

import threading
import time

import numpy as np
import pytest

from lowlevel.cpu import simd, threads
from lowlevel.cpu.jit import task_kernel
from lowlevel.cpu.threads import run_tasks
from tests.cpu.test_threads import run_python


@task_kernel
def count_tasks(job, worker, counter, max_tasks):
    """job: n_tasks, steps of work a task, then a count a task and, behind them, one a worker."""
    n, steps = simd.read_i64(job), simd.read_i64(job + 8)
    for _ in range(max_tasks):
        task = simd.take_task(counter, 1)
        if task >= n:
            return False
        total = np.int64(1)
        for i in range(steps):
            total ^= i * total + task
        done = job + 16 + 8 * task
        simd.write_at(done, simd.read_i64(done) + 1 + (total & 0))
        by = job + 16 + 8 * (n + worker)
        simd.write_at(by, simd.read_i64(by) + 1)
    return True


def count(n_tasks, n_workers, steps=0, max_tasks=3):
    """How often each task was done, and how many each worker has done."""
    job = np.zeros(2 + n_tasks + 64, np.int64)
    job[:2] = n_tasks, steps
    run_tasks(n_workers, count_tasks.address, job.ctypes.data, max_tasks)
    return job[2 : 2 + n_tasks], job[2 + n_tasks :]


@pytest.mark.parametrize("n_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 999])
def test_every_task_once(n_tasks, n_workers):
    for steps in (0, 50, 5000):
        done, by_worker = count(n_tasks, n_workers, steps if n_tasks < 100 else steps // 50)
        assert (done == 1).all()
        assert by_worker.sum() == n_tasks and not by_worker[n_workers:].any()


def test_helpers_do_their_share():
    """One after the other, as products follow in a pass: those who rest see the next work."""
    if threads.cpu_count() < 2:
        pytest.skip("one CPU: nobody else to help")
    until = time.monotonic() + 60  # other processes may have all CPUs for a while
    while not count(64, 2, steps=20_000)[1][1]:
        assert time.monotonic() < until


def test_many_threads_at_once():
    """One call has the board; the others go without."""
    wrong = []

    def call(seed):
        for i in range(60):
            done, by_worker = count(1 + (7 * i + seed) % 40, 1 + i % 3, steps=300)
            if not (done == 1).all() or by_worker.sum() != len(done):
                wrong.append((seed, i))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong and not threads._board().lock.locked()


def test_work_goes_on_in_a_forked_child():
    """The parent's helpers stand on the parent's board."""
    code = """
        import os, sys
        sys.path.insert(0, "tests/cpu")
        from tests.cpu.test_board import count
        assert (count(50, 2, 20_000)[0] == 1).all()
        child = os.fork()
        if not child:
            os._exit(0 if (count(50, 2, 20_000)[0] == 1).all() else 3)
        print(os.waitpid(child, 0)[1])
        """
    assert run_python(code).strip() == "0"
