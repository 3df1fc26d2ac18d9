"""Long and adversarial histories: a state machine against a model, random operations, threads."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowlevel.pool import BudgetError, Pool
from lowlevel.pool.arena import Arena

UNIT = 256
BUDGET_UNITS = 24
N_THREADS = 3


class Model:
    """What a pool promises, said as slowly and plainly as possible: a list of (start, units, name)."""

    def __init__(self, n_units):
        self.n_units = n_units
        self.blocks = []

    def free_runs(self):
        taken = {unit for start, n, _ in self.blocks for unit in range(start, start + n)}
        runs = []
        for unit in range(self.n_units):
            if unit not in taken:
                if runs and runs[-1][0] + runs[-1][1] == unit:
                    runs[-1][1] += 1
                else:
                    runs.append([unit, 1])
        return runs

    def take(self, n, name):
        """Start of the new block; None if it does not fit."""
        if n == 0:
            start = 0
        else:
            fitting = sorted(  # what reaches the end comes last
                (start + length == self.n_units, length, start)
                for start, length in self.free_runs()
                if length >= n
            )
            if not fitting:
                return None
            start = fitting[0][2]
        self.blocks.append((start, n, name))
        return start

    def give(self, name):
        self.blocks = [block for block in self.blocks if block[2] != name]

    @property
    def used(self):
        return sum(n for _, n, _ in self.blocks)


THREAD = st.integers(0, N_THREADS - 1)


class PoolMachine(RuleBasedStateMachine):
    """Threads take turns: take, free (in any order, twice, each other's), nest and leave scopes, reset the peak."""

    @initialize(debug=st.booleans(), slack=st.integers(0, UNIT - 1))
    def start(self, debug, slack):
        self.pool = Pool(BUDGET_UNITS * UNIT + slack, debug=debug)
        self.model = Model(BUDGET_UNITS)
        self.arrays = {}
        self.freed = []
        self.threads = [ThreadPoolExecutor(1) for _ in range(N_THREADS)]
        self.scopes = [
            [] for _ in self.threads
        ]  # of each: (scope, names taken in it), outermost first
        self.count = 0
        self.peak = 0

    def in_thread(self, thread, function, *args, **kwargs):
        return self.threads[thread].submit(function, *args, **kwargs).result()

    @rule(
        thread=THREAD,
        n_bytes=st.one_of(st.integers(0, 6 * UNIT), st.integers(0, (BUDGET_UNITS + 2) * UNIT)),
    )
    def take(self, thread, n_bytes):
        name = str(self.count)
        start = self.model.take(-(-n_bytes // UNIT), name)
        before = self.pool.live
        try:
            array = self.in_thread(thread, self.pool.empty, n_bytes, "uint8", tag=name)
        except BudgetError as error:
            assert start is None
            assert self.pool.live == before
            self.check_remedy(error)
            return
        assert start is not None
        array[...] = self.count % 251
        self.arrays[name] = (array, self.count % 251)
        self.count += 1
        if self.scopes[thread]:
            self.scopes[thread][-1][1].append(name)
        self.peak = max(self.peak, self.model.used)

    def check_remedy(self, error):
        blocks = [(start * UNIT, n * UNIT) for start, n, _ in self.model.blocks]
        assert Arena(error.smallest_budget, blocks).take(error.rounded) is not None
        end = max(start + n for start, n in [(0, 0), *blocks])
        if error.smallest_budget - UNIT >= end:
            assert Arena(error.smallest_budget - UNIT, blocks).take(error.rounded) is None
        assert error.fragmented == (error.rounded <= (BUDGET_UNITS - self.model.used) * UNIT)

    @precondition(lambda self: self.arrays)
    @rule(thread=THREAD, data=st.data())
    def free(self, thread, data):
        name = data.draw(st.sampled_from(sorted(self.arrays)))
        array, value = self.arrays.pop(name)
        assert (array == value).all()
        self.in_thread(thread, self.pool.free, array)
        self.model.give(name)
        self.freed = [*self.freed, array][-3:]

    @precondition(lambda self: self.freed)
    @rule(thread=THREAD)
    def free_again(self, thread):
        before = self.pool.snapshot()
        for array in self.freed:
            try:
                self.in_thread(thread, self.pool.free, array)
            except ValueError:
                continue
            raise AssertionError("freed twice")
        assert self.pool.snapshot() == before

    @rule(thread=THREAD)
    def enter_scope(self, thread):
        mine = self.scopes[thread]
        if len(mine) < 4:
            scope = self.pool.scope(f"s{len(mine)}")
            mine.append((self.in_thread(thread, scope.__enter__), []))

    @precondition(lambda self: any(self.scopes))
    @rule(thread=THREAD)
    def leave_scope(self, thread):
        if not self.scopes[thread]:
            return
        scope, names = self.scopes[thread].pop()
        self.in_thread(thread, scope.__exit__, None, None, None)
        for name in names:
            if self.arrays.pop(name, None):
                self.model.give(name)

    @precondition(lambda self: any(self.scopes))
    @rule(thread=THREAD)
    def leave_the_wrong_scope(self, thread):
        """An outer one before an inner one, or another thread's."""
        before = self.pool.snapshot()
        for owner, scopes in enumerate(self.scopes):
            for scope, _ in scopes[:-1] if owner == thread else scopes:
                try:
                    self.in_thread(thread, scope.__exit__, None, None, None)
                except RuntimeError:
                    continue
                raise AssertionError(f"thread {thread} left scope {scope.path} of thread {owner}")
        assert self.pool.snapshot() == before

    @rule()
    def reset_peak(self):
        self.pool.reset_peak()
        self.peak = self.model.used

    @invariant()
    def as_the_model_says(self):
        pool, model = self.pool, self.model
        assert pool.used == model.used * UNIT <= pool.budget
        assert pool.peak == self.peak * UNIT
        runs = model.free_runs()
        assert pool._arena.holes() == [(start * UNIT, n * UNIT) for start, n in runs]
        assert pool.largest_free == max((n for _, n in runs), default=0) * UNIT
        live = sorted((block.offset, block.n_bytes, block.tag) for block in pool.live)
        assert live == sorted((start * UNIT, n * UNIT, name) for start, n, name in model.blocks)
        for array, value in self.arrays.values():
            assert (array == value).all()

    def teardown(self):
        if hasattr(self, "pool"):
            for array, _ in self.arrays.values():
                self.pool.free(array)
            self.pool.close()
            for thread in self.threads:
                thread.shutdown()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_many_random_operations_do_not_drift():
    rng = random.Random(2024)
    with Pool("1MiB") as pool:
        live = []
        for step in range(1_000_000):
            if live and (len(live) > 200 or rng.random() < 0.5):
                i = rng.randrange(len(live))
                live[i], live[-1] = live[-1], live[i]
                pool.free(live.pop())
            else:
                try:
                    live.append(pool.empty(rng.randrange(12_000), "uint8"))
                except BudgetError:
                    for array in live[::2]:
                        pool.free(array)
                    del live[::2]
            if step % 20_000 == 0:
                blocks = [(block.offset, block.n_bytes) for block in pool.live]
                rebuilt = Arena(pool._arena.size, blocks)
                assert rebuilt.holes() == pool._arena.holes()
                assert rebuilt.used == pool.used
        for array in live:
            pool.free(array)
        assert pool._arena.holes() == [(0, 2**20)]
        assert pool.used == 0


class CountedLines:
    """How many lines of the library run inside."""

    def __enter__(self):
        self.n = 0
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        return self._line if "/lowlevel/" in frame.f_code.co_filename else None

    def _line(self, frame, event, argument):
        self.n += event == "line"
        return self._line


def test_work_does_not_grow_with_the_number_of_live_blocks():
    """Lines that run per block taken and freed at random: what is left to C is a bisection, and one list's insertion."""
    most = {}
    for n_live in (10, 100, 1000, 10_000):
        rng = random.Random(n_live)
        with Pool(n_live * 8192) as pool, pool.scope("s"):
            live = [pool.empty(rng.randrange(1, 4096), "uint8") for _ in range(n_live)]
            counts = []
            for _ in range(300):
                index, n_bytes = rng.randrange(n_live), rng.randrange(1, 4096)
                with CountedLines() as lines:
                    pool.free(live[index])
                    live[index] = pool.empty(n_bytes, "uint8")
                counts.append(lines.n)
        most[n_live] = max(counts)
    assert 0 < max(most.values()) <= most[10] + 20, most


def test_no_memory_is_kept_of_what_is_gone():
    """Bookkeeping is of the live blocks and of those at the peak, however many came and went."""
    with Pool("64KiB") as pool:
        for round in range(5000):
            with pool.scope("round"):
                for _ in range(round % 4):
                    pool.empty(1000, tag=str(round))
        assert len(pool._at_peak.freed) <= 4
        assert not pool._live
        assert not pool._scopes()


def test_threads_never_pass_the_cap_nor_meet_in_memory():
    budget = 64 * UNIT
    n_threads, n_rounds = 8, 400
    stop = threading.Event()
    errors = []
    refused = [0] * n_threads

    def hammer(worker):
        rng = random.Random(worker)
        mine = []
        try:
            with pool.scope(f"worker {worker}"):
                for _ in range(n_rounds):
                    if mine and rng.random() < 0.45:
                        array = mine.pop(rng.randrange(len(mine)))
                        assert (array == worker).all()
                        pool.free(array)
                        continue
                    try:
                        array = pool.empty(rng.randrange(8 * UNIT), "uint8", tag=str(worker))
                    except BudgetError:
                        refused[worker] += 1
                        continue
                    array[...] = worker
                    mine.append(array)
                for array in mine:
                    assert (array == worker).all()
        except BaseException as error:
            errors.append(error)

    def sample():
        try:
            while not stop.wait(0.0005):
                assert 0 <= pool.used <= budget
                live = [block for block in pool.live if block.n_bytes]
                ends = [block.offset + block.n_bytes for block in live]
                assert all(end <= block.offset for end, block in zip(ends, live[1:], strict=False))
                assert sum(block.n_bytes for block in live) <= budget
                assert all(end <= budget for end in ends)
        except BaseException as error:
            errors.append(error)

    with Pool(budget) as pool:
        sampler = threading.Thread(target=sample)
        workers = [threading.Thread(target=hammer, args=(i,)) for i in range(n_threads)]
        sampler.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stop.set()
        sampler.join()
        assert not errors, errors[0]
        assert pool.used == 0 and pool.live == []
        assert budget // 2 < pool.peak <= budget
        assert sum(refused) > 0  # the cap was met, or the test tests nothing
