"""Worker threads: errors, interrupts, forks, many callers, a process that is ending."""

import gc
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

import lowlevel
from lowlevel.cpu import simd, spin, threads
from lowlevel.cpu.jit import kernel
from lowlevel.cpu.threads import STOP, resolve_n_threads, run_workers

ROOT = pathlib.Path(__file__).parents[2]


def run_python(code, timeout=120):
    """Standard output of a fresh process that runs `code`; it must end well and say nothing else."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    # Kernels may be compiled there for the first time, which is said once.
    lines = [x for x in done.stderr.splitlines() if not x.startswith("kqcap: compiling kernels")]
    assert not lines
    return done.stdout


@kernel
def _square_tasks(numbers, squares, counter, slice_tasks):
    """squares[i] = numbers[i]**2 by tasks of one element, `slice_tasks` of them a call."""
    for _ in range(slice_tasks):
        task = simd.take_task(counter, 1)
        if task >= len(numbers):
            return False
        squares[task] += numbers[task] * numbers[task]
    return True


def square(n, n_workers):
    numbers, squares = np.arange(n), np.zeros(n, np.int64)
    counter = np.zeros(1, np.int64)
    run_workers(n_workers, lambda _: _square_tasks(numbers, squares, counter, 10), counter)
    return squares


class Tasks:
    """A worker made of Python: `n` tasks, `do(worker, task)` each."""

    def __init__(self, n, do):
        self.n, self.do, self.counter = n, do, np.zeros(1, np.int64)
        self._lock = threading.Lock()

    def __call__(self, worker):
        with self._lock:
            task = int(self.counter[0])
            self.counter[0] = task + 1
        if task >= self.n:
            return False
        self.do(worker, task)
        return True

    def run(self, n_workers):
        run_workers(n_workers, self, self.counter)


# ---------------------------------------------------------------- how many


def test_n_threads():
    assert resolve_n_threads(None) == threads.cpu_count() >= 1
    assert resolve_n_threads(1) == 1
    assert resolve_n_threads(np.int32(7)) == 7
    assert type(resolve_n_threads(np.int32(7))) is int


@pytest.mark.parametrize("bad", [0, -1, np.int64(-3)])
def test_n_threads_below_one_are_refused(bad):
    with pytest.raises(ValueError, match=f"n_threads: expected an int, 1 to [0-9]+, got {bad}"):
        resolve_n_threads(bad)


@pytest.mark.parametrize("bad", [5000, 2**70])
def test_more_threads_than_any_use_are_refused(bad):
    assert resolve_n_threads(threads.MOST_THREADS) == threads.MOST_THREADS
    with pytest.raises(ValueError, match=f"n_threads: expected an int, 1 to [0-9]+, got {bad}"):
        resolve_n_threads(bad)


def test_a_row_of_method_steps_wakes_nobody():
    """Its softmax has one task a row: no thread is started that has none."""
    code = """
        import threading
        import numpy as np
        import lowlevel
        q, k = (np.ones((1, n, 8), np.float32) for n in (1, 20))
        lowlevel.attention(q, k, k, method="steps", n_threads=200)
        print(threading.active_count())
        """
    one = np.ones((1, 1, 8), np.float32)
    lowlevel.attention(
        one, one, one, method="steps"
    )  # compiled here: a process that compiles says so
    assert run_python(code).strip() == "1"


@pytest.mark.parametrize("bad", [True, 2.0, "2", np.float32(2), [2]])
def test_n_threads_of_other_types_are_refused(bad):
    with pytest.raises(TypeError, match="n_threads: expected an int"):
        resolve_n_threads(bad)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_none_means_the_cpus_this_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = f"""
        import os
        os.sched_setaffinity(0, {{{one}}})
        from lowlevel.cpu.threads import resolve_n_threads
        print(resolve_n_threads(None))
        """
    assert run_python(code).strip() == "1"


# ---------------------------------------------------------------- work


@pytest.mark.parametrize("n_workers", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("n", [0, 1, 5, 10_001])
def test_every_task_is_done_once(n, n_workers):
    np.testing.assert_array_equal(square(n, n_workers), np.arange(n) ** 2)


def test_workers_run_at_the_same_time():
    """Each of three workers waits for the other two inside its first task."""
    barrier = threading.Barrier(3)
    tasks = Tasks(3, lambda worker, task: barrier.wait(timeout=60))
    tasks.run(3)
    assert not barrier.broken


def test_worker_0_is_the_calling_thread_and_one_worker_starts_no_other():
    seen = []
    before = threading.active_count()
    Tasks(5, lambda worker, task: seen.append((worker, threading.current_thread()))).run(1)
    assert seen == [(0, threading.current_thread())] * 5
    assert threading.active_count() == before


def test_a_call_inside_a_worker():
    """Every worker of a call starts a call of its own: no deadlock however few the threads are."""
    results = []
    Tasks(6, lambda worker, task: results.append(square(500, 3))).run(3)
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, np.arange(500) ** 2)


def test_many_callers_at_once_and_ever_more_workers():
    """The executor is replaced by a larger one under the feet of those who use it."""
    failures = []

    def call(caller):
        try:
            for round_ in range(12):
                n = 50 + 10 * caller + round_
                np.testing.assert_array_equal(square(n, 2 + caller + 3 * round_), np.arange(n) ** 2)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_error_in_one_worker_stops_the_others_and_is_raised(failing, error):
    running, barrier = set(), threading.Barrier(3)
    n_tasks = 10**9  # would never end

    def do(worker, task):
        running.add(worker)
        try:
            if task < 3:
                barrier.wait(timeout=60)
                if worker == failing:
                    raise error("on purpose")
            time.sleep(0.001)
        finally:
            running.discard(worker)

    tasks = Tasks(n_tasks, do)
    with pytest.raises(error, match="on purpose"):
        tasks.run(3)
    assert not running
    assert tasks.counter[0] >= STOP
    done = int(tasks.counter[0])
    time.sleep(0.05)
    assert tasks.counter[0] == done, "a worker runs after the call has ended"
    np.testing.assert_array_equal(square(100, 3), np.arange(100) ** 2)


def test_an_error_keeps_no_array_alive():
    """No cycle of traceback, frame and future, which would hold scratch until the next collection."""

    def fail():
        array = np.zeros(10)
        barrier = threading.Barrier(2)

        def do(worker, task):
            barrier.wait(timeout=60)
            if worker == 1:
                raise RuntimeError(f"{len(array)}")

        return weakref.ref(array), Tasks(2, do)

    gc.collect()
    gc.disable()
    try:
        array, tasks = fail()
        try:  # pytest.raises would keep the traceback
            tasks.run(2)
        except RuntimeError:
            del tasks
        for _ in range(200):  # the helper thread lets go of its work soon after
            if array() is None:
                break
            time.sleep(0.01)
        assert array() is None
    finally:
        gc.enable()


def test_a_helper_that_has_not_started_never_does(monkeypatch):
    """All threads busy elsewhere: worker 0 does everything, and nothing runs afterwards."""
    busy, release = threading.Barrier(3), threading.Event()
    monkeypatch.setattr(threads, "_tasks", queue.SimpleQueue())
    monkeypatch.setattr(threads, "_n_helpers", 0)

    def hold(worker, task):
        busy.wait(timeout=60)
        release.wait(timeout=60)

    holder = threading.Thread(target=lambda: Tasks(2, hold).run(2))
    holder.start()
    try:
        busy.wait(timeout=60)  # the only helper is taken now
        workers = []
        Tasks(20, lambda worker, task: workers.append(worker)).run(2)
        assert workers == [0] * 20
    finally:
        release.set()
        holder.join()
    time.sleep(0.05)
    assert workers == [0] * 20
    np.testing.assert_array_equal(square(100, 2), np.arange(100) ** 2)


@pytest.mark.parametrize("n_started", [0, 1, 2])
def test_threads_that_cannot_be_started(monkeypatch, n_started):
    """At a limit of threads some helpers come and some do not: all work done, nothing left running.

    A thread that fails to start leaves its work in the queue, for another to find later.
    """
    monkeypatch.setattr(threads, "_tasks", queue.SimpleQueue())
    monkeypatch.setattr(threads, "_n_helpers", 0)
    start, started = threading.Thread.start, []

    def limited(thread):
        if thread.name.startswith("kqcap"):
            if len(started) >= n_started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    barrier = threading.Barrier(1 + n_started)
    active, ran = set(), []

    def do(worker, task):
        active.add(worker)
        if task <= n_started:
            barrier.wait(timeout=60)
        time.sleep(0.002)
        ran.append(task)
        active.discard(worker)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        tasks = Tasks(30, do)
        tasks.run(5)
        assert not active
        assert sorted(ran) == list(range(30))
        taken = int(tasks.counter[0])
        time.sleep(0.05)
        assert tasks.counter[0] == taken, "a worker runs after the call has ended"
    np.testing.assert_array_equal(square(100, 5), np.arange(100) ** 2)


def test_interrupts_while_waiting_for_helpers():
    """Ctrl-C, twice, while worker 0 is done and a helper is not: it is waited for, then raised."""
    running, finish = threading.Event(), threading.Event()
    done = []

    def do(worker, task):
        if worker == 1:
            running.set()
            finish.wait(timeout=60)
            done.append(worker)
        else:
            running.wait(timeout=60)

    def interrupt():
        for _ in range(2):
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        finish.set()

    interrupter = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupter.start()
        Tasks(2, do).run(2)
    assert done == [1]
    interrupter.join()


def test_a_short_wait_ends_early_or_gives_up():
    flags = np.zeros(3, np.int64)
    assert spin.wait_for(flags[:0].copy())
    assert not spin.wait_for(flags)
    flags[:2] = 1
    assert not spin.wait_for(flags)
    flags[2] = 1
    assert spin.wait_for(flags)


def test_a_helper_that_outlasts_the_short_wait_is_waited_for():
    ended = []

    def do(worker, task):
        barrier.wait(timeout=60)
        if worker == 1:
            time.sleep(0.2)
            ended.append(worker)

    barrier = threading.Barrier(2)
    Tasks(2, do).run(2)
    assert ended == [1]


# ---------------------------------------------------------------- processes


def test_ctrl_c_while_helpers_start_does_not_keep_the_process_from_ending():
    """The thread is there, but its `start` never came back to say so."""
    code = """
        import threading
        import numpy as np
        import lowlevel

        start = threading.Thread.start

        def interrupted(thread):
            start(thread)
            if thread.name.startswith("kqcap"):
                raise KeyboardInterrupt

        q = np.ones((8, 64, 32), "f4")
        threading.Thread.start = interrupted
        try:
            lowlevel.attention(q, q, q, n_threads=2)
        except KeyboardInterrupt:
            print("interrupted")
        threading.Thread.start = start
        print(float(lowlevel.attention(q, q, q, n_threads=2).max()))
    """
    assert run_python(code).split() == ["interrupted", "1.0"]


def test_ctrl_c_ends_an_attention_call():
    """A real signal in the midst of a call that would take minutes."""
    out = run_python(
        """
        import os, signal, threading, time
        import numpy as np
        import lowlevel
        from lowlevel.attention.reference import attention_float64

        rng = np.random.default_rng(1)
        small = [rng.standard_normal((2, n, 32), dtype=np.float32) for n in (9, 40, 40)]
        lowlevel.attention(*small, n_threads=2)  # compiles

        q = np.zeros((16, 20000, 64), np.float32)
        k = np.zeros((16, 20000, 64), np.float32)
        out = np.empty_like(q)
        sent = []

        def interrupt():
            time.sleep(1)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        with lowlevel.Pool("64MiB") as pool:
            threading.Thread(target=interrupt).start()
            try:
                lowlevel.attention(q, k, k, out=out, pool=pool, n_threads=2, causal=False)
            except KeyboardInterrupt:
                print("interrupted", time.perf_counter() - sent[0])
            assert pool.used == 0 and not pool.live, pool.live
            before = out.copy()
            again = lowlevel.attention(*small, pool=pool, n_threads=2)
            assert np.abs(again - attention_float64(*small)).max() < 1e-5
            assert np.array_equal(before, out), "a worker went on after the interrupt"
        """
    )
    word, seconds = out.split()
    assert word == "interrupted"
    assert float(seconds) < 10  # about a tenth of a second, on a machine that is not overloaded


FORK = """
    import os, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12+ on forks beside threads
    import numpy as np
    import lowlevel
    from lowlevel.attention.reference import attention_float64

    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((4, n, 32), dtype=np.float32) for n in (50, 300, 300))
    expected = attention_float64(q, k, v)

    def check(method="auto"):
        out = lowlevel.attention(q, k, v, n_threads=3, method=method)
        assert np.abs(out - expected).max() < 1e-5
    """


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no list of loaded libraries")
def test_there_is_no_openmp():
    """No OpenMP runtime is loaded, nor any of Numba's threading layers."""
    out = run_python(
        FORK
        + """
    import quant
    check(); check("steps")
    w = quant.quantize(rng.standard_normal((64, 256), dtype=np.float32), "Q8_0")
    quant.dequantize(w, n_threads=3)
    quant.matmul(np.ones((2, 256), np.float32), w, n_threads=3)
    with open("/proc/self/maps") as file:
        maps = file.read()
    assert "llvmlite" in maps  # it does list libraries
    runtimes = ("libgomp", "libomp", "libiomp", "omppool", "tbbpool", "workqueue", "libtbb")
    print([name for name in runtimes if name in maps])
    """
    )
    assert out.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_use():
    out = run_python(
        FORK
        + """
    check(); check("steps")
    for _ in range(3):
        child = os.fork()
        if not child:
            check(); check("steps")
            sys.exit(0)  # with all of the interpreter's shutdown
        check()
        assert os.waitpid(child, 0)[1] == 0
    check()
    print("right")
    """
    )
    assert out.split() == ["right"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_other_threads_are_calling():
    out = run_python(
        FORK
        + """
    import multiprocessing

    stop = threading.Event()

    def keep_calling(method):
        while not stop.is_set():
            check(method)

    def child():
        check(); check("steps")

    for method in ("auto", "steps"):
        check(method)
    callers = [threading.Thread(target=keep_calling, args=(m,)) for m in ("auto", "steps", "auto")]
    for caller in callers:
        caller.start()
    context = multiprocessing.get_context("fork")
    children = []
    for _ in range(6):
        children.append(context.Process(target=child))
        children[-1].start()
        check()
    for process in children:
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    stop.set()
    for caller in callers:
        caller.join()
    print("right")
    """
    )
    assert out.split() == ["right"]


@pytest.mark.parametrize("used_before", [False, True])
def test_calls_while_the_interpreter_ends(used_before):
    """Helpers can no longer be started then: worker 0 does it all, and the process ends."""
    out = run_python(
        f"""
        import atexit, threading
        import numpy as np
        import lowlevel
        from lowlevel.attention.reference import attention_float64

        rng = np.random.default_rng(3)
        q, k, v = (rng.standard_normal((4, n, 32), dtype=np.float32) for n in (50, 300, 300))
        expected = attention_float64(q, k, v)

        def check(when):
            out = lowlevel.attention(q, k, v, n_threads=3)
            assert np.abs(out - expected).max() < 1e-5
            print(when)

        def outlive():
            main.join()
            check("a thread that outlives the main one")

        import lowlevel.cpu.threads, concurrent.futures.thread
        main = threading.main_thread()
        atexit.register(check, "atexit")
        threading.Thread(target=outlive).start()
        if {used_before}:
            check("before")
        """
    )
    assert ("before" in out) == used_before
    assert "a thread that outlives the main one" in out
    assert "atexit" in out
