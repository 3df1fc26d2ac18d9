"""A Ctrl-C at any bytecode of any public call leaves no block, scope, trace or half-changed books behind.

On the CPU, without a compiled kernel but for the smallest calls of attention and matmul; with real signals at the end.
"""

import signal
import threading
import time

import numpy as np
import pytest
from interrupts import InterruptAt, sweep

import lowlevel
import quant
from lowlevel.inspect.reader import read_events
from lowlevel.pool import Pool, Trace
from lowlevel.pool.arena import Arena
from lowlevel.sure_start import start_thread

BUDGET = 2**20
# Files whose every bytecode is interrupted; of the others, which take nothing, every line.
THAT_TAKE = tuple(
    f"lowlevel/{name}.py" for name in ("sure_exit", "pool/pool", "pool/scope", "pool/arena")
)


def takes(path):
    return path in THAT_TAKE


@pytest.fixture(params=["plain", "debug"])
def pool(request):
    with Pool(BUDGET, debug=request.param == "debug") as pool:
        yield pool


def check_books(pool, *kept):
    """Nothing but `kept` is live, and every number says so."""
    assert {id(array) for array in kept} == set(pool._live), pool.live
    blocks = [(block.offset, block.n_bytes) for block in pool.live]
    assert pool._arena.holes() == Arena(pool._arena.size, blocks).holes()
    assert pool.used == sum(n_bytes for _, n_bytes in blocks)
    assert not pool._scopes() and not pool._in_doubt and not pool._unwanted
    state = pool.snapshot()
    assert sum(block["n_bytes"] for block in state["at_peak"]["live"]) == pool.peak
    assert not pool._lock.locked()


def test_scopes_and_what_is_taken_in_them(pool):
    kept = pool.empty(300, tag="kept")

    def run():
        with pool.scope("outer"):
            a = pool.empty(10)
            with pool.scope("inner"):
                pool.free(a)
                pool.empty(20)

    step = 7 if pool.debug else 1
    assert sweep(run, lambda n: check_books(pool, kept), step, is_counted=takes) > 400
    pool.free(kept)


def test_taking_outside_of_scopes(pool):
    """An interrupted `empty` has taken nothing; an interrupted `free` has freed, or not."""
    taken = []

    def take():
        taken.append(pool.empty(100))

    def check_taken(n):
        check_books(pool, *taken)
        while taken:
            pool.free(taken.pop())

    assert sweep(take, check_taken) > 100
    mine = pool.empty(100)

    def give():
        pool.free(mine)

    def check_given(n):
        nonlocal mine
        if id(mine) not in pool._live:
            mine = pool.empty(100)
        check_books(pool, mine)

    assert sweep(give, check_given) > 50
    pool.free(mine)


def test_a_refusal(pool):
    def refused():
        with pytest.raises(lowlevel.BudgetError):
            pool.empty(2**20)

    sweep(refused, lambda n: check_books(pool), is_counted=takes)


def test_closing(tmp_path):
    """A pool that was being closed is closed, by `with` in any case, or whole."""
    made = []

    def run():
        with Pool(BUDGET) as pool:
            made.append(pool)
            pool.empty(100)

    def check(n):
        for pool in made:
            assert pool.closed and pool.used == 0 and not pool._live
        made.clear()

    assert sweep(run, check, is_counted=takes) > 100


@pytest.fixture
def traced(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.mark.parametrize("left", [KeyboardInterrupt, None])
def test_what_comes_out_of_starting_a_thread(left):
    """An interrupt as itself, though leaving a condition fails after it; that there are no threads as before."""

    class Unstarted(threading.Thread):
        def start(self):
            try:
                if left is not None:
                    raise left
            finally:
                raise RuntimeError("release unlocked lock")

    with pytest.raises(left or RuntimeError):
        start_thread(Unstarted())


def test_traces(pool, traced):
    """The pool can be traced again, and the file is whole where the trace's `with` was left."""
    began = []

    def run():
        with Trace(traced) as trace:
            began.append(trace)
            trace.attach(pool)
            with pool.call("work"), pool.scope("s"):
                pool.empty(100)

    def check(n):
        assert pool._trace is None
        check_books(pool)
        if began:
            ops = [event["op"] for event in read_events(traced)]
            assert ops[-1] == "stop" and ops.count("stop") == 1
            assert ops.count("attach") == ops.count("detach") <= 1
            # Between a flag and the call of C beside it CPython delivers nothing; here it may be either.
            assert abs(ops.count("begin") - ops.count("end")) <= 1
            *_, stop = read_events(traced)
            assert stop["n_events"] == len(ops) - 1
        began.clear()

    def is_counted(path):
        return "trace.py" in path or "sure_exit" in path

    assert sweep(run, check, 5, is_counted=is_counted) > 400


Q = np.ones((1, 1, 32), np.float32)
X = np.ones((1, 32), np.float32)


def weights():
    return quant.quantize(np.ones((4, 32), np.float32), "Q8_0")


def calls():
    w = weights()
    out = np.empty((1, 1, 32), np.float32)
    return {
        "attention": lambda pool: lowlevel.attention(Q, Q, Q, pool=pool, out=out, n_threads=1),
        "two threads": lambda pool: lowlevel.attention(Q, Q, Q, pool=pool, out=out, n_threads=2),
        "private": lambda pool: lowlevel.attention(Q, Q, Q, out=out, n_threads=1),
        "matmul": lambda pool: quant.matmul(X, w, pool=pool, n_threads=1),
        "dequantize": lambda pool: quant.dequantize(w, n_threads=1),
        "quantize": lambda pool: quant.quantize(X, "Q8_0", n_threads=1),
        "concat": lambda pool: lowlevel.concat([X, X]),
        "plan": lambda pool: lowlevel.plan_attention(
            n_head=1, n_tokens=1, n_kv=1, d_k=32, d_v=32, n_threads=1
        ),
    }


@pytest.mark.parametrize("name", list(calls()))
def test_any_public_call_at_any_bytecode(name):
    call = calls()[name]
    with Pool(BUDGET) as pool:
        kept = pool.empty(300, tag="kept")
        call(pool)  # compiles, imports
        sweep(lambda: call(pool), lambda n: check_books(pool, kept), 7, is_counted=takes)
        sweep(
            lambda: call(pool),
            lambda n: check_books(pool, kept),
            7,
            is_counted=lambda path: not takes(path),
            by_line=True,
        )
        call(pool)
        pool.free(kept)


def test_no_worker_is_at_work_after_an_interrupt():
    """Every bytecode of `run_workers`: whoever gets the interrupt may use the workers' memory at once."""
    from lowlevel.cpu.threads import run_workers

    at_work = set()

    def worker(i):
        at_work.add(i)
        if i:
            time.sleep(0.002)
        at_work.discard(i)
        return False

    def run():
        run_workers(2, worker, np.zeros(1, np.int64))

    def check(n):
        assert 1 not in at_work

    run()
    assert sweep(run, check, is_counted=lambda path: path.endswith("cpu/threads.py")) > 100


def test_nobody_is_on_the_board_after_an_interrupt():
    """Every bytecode of `run_tasks`: the board is closed, and a helper that came in has left."""
    from lowlevel.cpu import board, threads
    from tests.cpu.test_board import count

    memory = threads._board().memory.view(np.int64)

    def check(n):
        sequence, inside = memory[board._SEQUENCE // 8], memory[board._INSIDE // 8]
        assert sequence % 2 == 0 and inside == 0

    for resting in (False, True):  # helpers asleep, or awake from the call before

        def run(resting=resting):
            if not resting:
                time.sleep(0.002)
            count(4, 2, steps=2000, max_tasks=1)

        run()
        assert sweep(run, check, is_counted=lambda path: path.endswith("cpu/threads.py")) > 20
        if (
            threads._board().lock.locked()
        ):  # struck between taking it and knowing: others go without
            threads._board().lock.release()


def test_an_outer_scope_is_left_well_after_an_interrupt_in_the_inner():
    """Once "scope left out of order" took the interrupt's place."""
    with Pool(BUDGET) as pool:
        n, struck = 0, True
        while struck:
            n += 1
            with pool.scope("outer"):
                at = InterruptAt(n, lambda path: "scope" in path or "sure_exit" in path)
                try:
                    with at, pool.scope("inner"):
                        pass
                except KeyboardInterrupt:
                    pass
                struck = at.struck
            check_books(pool)


def test_looking_at_an_exit_leaves_nothing():
    with Pool(BUDGET) as pool, pool.scope("s") as scope:
        pool.empty(10)
        assert callable(pool.__exit__) and callable(scope.__exit__)
        assert not pool.closed and pool.used == 256 and pool._scopes() == [scope]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_real_signals_at_random_times(tmp_path):
    rng = np.random.default_rng()
    every = calls()
    n_struck = 0
    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with Pool(BUDGET) as pool, Trace(tmp_path / "run.jsonl") as trace:
            trace.attach(pool)

            def scopes(pool):
                with pool.scope("a"), pool.scope("b"):
                    pool.free(pool.empty(10))
                    pool.empty(20)

            for call in (scopes, every["attention"], every["matmul"]):
                call(pool)
                start = time.perf_counter()
                call(pool)
                seconds = time.perf_counter() - start
                for after in rng.uniform(1e-6, 1.2 * seconds + 1e-6, 300):
                    try:
                        try:
                            signal.setitimer(signal.ITIMER_REAL, after)
                            call(pool)
                        finally:
                            signal.setitimer(signal.ITIMER_REAL, 0)
                    except KeyboardInterrupt:
                        n_struck += 1
                    check_books(pool)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert n_struck > 100
