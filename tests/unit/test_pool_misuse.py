"""Misuse is an error that says what happened, and changes nothing; debug mode finds the rest."""

import copy
import linecache
import pickle
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from lowlevel.pool import BudgetError, MemoryCorruptionError, Pool
from lowlevel.pool import memory as pool_memory
from lowlevel.pool.arena import Arena


@pytest.fixture(params=["plain", "debug", "cudasim", "cudasim debug"])
def pool(request):
    device = "cudasim" if "cudasim" in request.param else "cpu"
    with Pool("1MiB", device=device, debug="debug" in request.param) as pool:
        yield pool


def in_thread(function):
    """What `function` returned or raised in a thread of its own."""
    result = []

    def run():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def refused(pool, array, match):
    before = pool.snapshot()
    with pytest.raises(ValueError, match=match):
        pool.free(array)
    assert pool.snapshot() == before


@pytest.mark.parametrize("shape", [100, 0, (3, 4)])
def test_double_free(pool, shape):
    a = pool.empty(shape, tag="a")
    pool.free(a)
    refused(pool, a, "freed before")
    b = pool.empty(shape, tag="b")
    refused(pool, a, "freed before")
    pool.free(b)


def test_views_are_not_what_was_taken(pool):
    a = pool.empty((4, 5), tag="mine")
    for view in (
        a[:],
        a[1:],
        a.T,
        a.reshape(-1),
        a.view("int32"),
        a[::-1, ::-1],
        a[()],
    ):
        if view is not a:
            refused(pool, view, "view of block 'mine'")
    pool.free(a)


def test_foreign_arrays(pool):
    with Pool("1MiB", device=pool.device) as other, other.scope("s"):
        refused(pool, other.empty(10), "not from this pool")
        pool.empty(10, tag="own")
        refused(pool, np.zeros(10), "not from this pool|got ndarray")
        refused(pool, [1, 2], "got list")
        refused(pool, None, "got NoneType")
        pool.free(next(array for array, _, _ in pool._live.values()))


def test_an_id_that_is_used_again_is_not_mistaken(pool):
    # An array that nobody holds but the pool keeps its id; so a new array cannot have it.
    with pool.scope("s"):
        for _ in range(100):
            pool.empty(10)
            refused(pool, np.zeros(3), "not from this pool|got ndarray")


def test_use_after_close(pool):
    a = pool.empty(10)
    pool.free(a)
    scope = pool.scope("late")
    pool.close()
    for use in (lambda: pool.empty(1), lambda: pool.free(a), scope.__enter__):
        with pytest.raises(ValueError, match="pool is closed"):
            use()


def test_close_inside_a_scope():
    with Pool(4096) as pool, pool.scope("a"):
        pool.empty(1)
        pool.close()
    assert pool.used == 0


def test_scopes_left_out_of_order(pool):
    outer, inner = pool.scope("outer"), pool.scope("inner")
    outer.__enter__()
    pool.empty(10)
    inner.__enter__()
    pool.empty(10)
    before = pool.snapshot()
    with pytest.raises(
        RuntimeError, match=r"'outer' left out of order.*'outer/inner' is the innermost"
    ):
        outer.__exit__(None, None, None)
    assert pool.snapshot() == before
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    assert pool.used == 0
    with pytest.raises(RuntimeError, match="this thread is in none"):
        outer.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="entered before"):
        outer.__enter__()


def test_scopes_belong_to_their_thread(pool):
    with pool.scope("main") as scope:
        pool.empty(10, tag="main")
        error = in_thread(lambda: scope.__exit__(None, None, None))
        assert isinstance(error, RuntimeError) and "did not enter it" in str(error)
        array = in_thread(lambda: pool.empty(10, tag="other"))
        assert [block.scope for block in pool.live] == ["main", ""]
        assert pool.live[1].thread != pool.live[0].thread
    assert [block.tag for block in pool.live] == ["other"]
    in_thread(lambda: pool.free(array))  # any thread may free
    assert pool.live == []


def test_another_thread_may_free_what_a_scope_holds(pool):
    with pool.scope("main"):
        array = pool.empty(10)
        in_thread(lambda: pool.free(array))
        pool.empty(10)
    assert pool.used == 0


def test_scope_names_and_pickles(pool):
    with pytest.raises(TypeError, match="name"):
        pool.scope(3)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(pool)


def test_a_fork_while_other_threads_use_the_pool():
    """A program of its own: the child finds the pool whole and free."""
    code = """
        import os, signal, threading
        from lowlevel.pool import Pool
        pool, stop = Pool("1MiB"), threading.Event()
        def work():
            while not stop.is_set():
                pool.free(pool.empty(1000, tag="thread"))
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(40):
            child = os.fork()
            if not child:
                signal.alarm(10)
                with pool.scope("child"):
                    pool.empty(10)
                assert pool.used == sum(block.n_bytes for block in pool.live)
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        for thread in threads:
            thread.join()
        assert codes == [0] * 40, codes
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_an_error_inside_the_pool_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), Pool(4096, debug=True) as pool:
        pool.empty(10)
        1 / 0  # noqa: B018
    assert pool.closed and pool.used == 0


# ---------------------------------------------------------------- failures in between


class FailingMemory:
    """A pool's memory that raises once, at the n-th call of one kind."""

    def __init__(self, memory, call, n, error):
        self._memory, self._call, self._left, self._error = memory, call, n, error

    def __getattr__(self, name):
        found = getattr(self._memory, name)
        if name == self._call:
            self._left -= 1
            if self._left == 0:
                raise self._error
        return found


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("n", range(1, 12))
def test_an_allocation_that_fails_leaves_no_trace(n, error, debug):
    def state(pool):
        return pool.snapshot(), pool._arena.holes(), pool._number

    with Pool("64KiB", debug=debug) as pool, pool.scope("s"):
        arrays = [pool.empty(100 * i) for i in range(5)]
        pool.free(arrays[2])
        pool._memory = FailingMemory(pool._memory, "take", n, error("injected"))
        for i in range(1, 12):
            before = state(pool)
            if i == n:
                with pytest.raises(error, match="injected"):
                    pool.empty(50 * i, tag="fails")
                assert state(pool) == before
            pool.empty(50 * i)
            assert state(pool) != before
    assert pool.used == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_scope_that_is_interrupted_still_frees_everything(n):
    with Pool("64KiB") as pool:
        kept = pool.empty(100, tag="kept")
        with pytest.raises(KeyboardInterrupt), pool.scope("s"):
            for i in range(3):
                pool.empty(100 * i)
            pool._memory = FailingMemory(pool._memory, "give", n, KeyboardInterrupt())
        assert [block.tag for block in pool.live] == ["kept"]
        assert pool.used == 512 and pool.largest_free == 2**16 - 512
        pool.free(kept)


class InterruptAt:
    """Raises KeyboardInterrupt before the n-th line that runs in the pool's and the arena's code.

    Lines with `with` and `try` are left out: they are also reported at points where CPython delivers no signal
    and where a lock would stay taken.
    """

    files = tuple(f"lowlevel/pool/{name}.py" for name in ("pool", "arena", "memory"))

    def __init__(self, n):
        self.left = n

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def call(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.endswith(self.files) else None

    def line(self, frame, event, argument):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith(("with ", "try:", "finally:")):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.line


def test_an_interrupt_at_any_line_leaves_the_books_right():
    n, interrupted = 0, True
    while interrupted:
        n += 1
        interrupted = False
        with Pool("64KiB") as pool:
            kept = pool.empty(300, tag="kept")
            with InterruptAt(n):
                try:
                    with pool.scope("s"):
                        a = pool.empty(10)
                        pool.empty(2000, tag="b")
                        pool.free(a)
                        pool.empty(20)
                except KeyboardInterrupt:
                    interrupted = True
            live = [(block.offset, block.n_bytes) for block in pool.live]  # the lock is free
            assert pool._arena.holes() == Arena(2**16, live).holes()
            assert pool.used == sum(n_bytes for _, n_bytes in live)
            assert not pool._scopes()
            pool.free(kept)
    assert n > 100


# ---------------------------------------------------------------- debug mode


@pytest.fixture
def debug_pool():
    with Pool("1MiB", debug=True) as pool:
        yield pool


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_poison_reads_as_nan(debug_pool, dtype):
    a = debug_pool.empty(100, dtype)
    assert np.isnan(a).all()
    taken = a.tobytes()
    a[...] = 1
    debug_pool.free(a)
    assert np.isnan(a).all()
    assert a.tobytes() != taken


@pytest.mark.parametrize(("start", "where"), [(-1, "before the start"), (64, "past the end")])
def test_a_write_outside_a_block_is_found(debug_pool, start, where):
    a = debug_pool.empty(64, "float32", tag="kq")
    b = debug_pool.empty(64, "float32", tag="innocent")
    shape = np.lib.stride_tricks.as_strided(a, (66,), (4,))
    memory = np.ndarray(
        (1,), "float32", _bytes_at(shape.__array_interface__["data"][0] + 4 * start)
    )
    memory[0] = 0
    with pytest.raises(MemoryCorruptionError, match=f"{where} of block 'kq'.*test_pool_misuse.py"):
        debug_pool.free(a)
    assert [block.tag for block in debug_pool.live] == ["innocent"]  # it is free all the same
    debug_pool.free(b)


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("n", [1, 63, 65, 127])
@pytest.mark.parametrize("past", [0, 1])
def test_a_write_into_what_a_block_is_rounded_up_by_is_found(device, dtype, n, past):
    pool = Pool("1MiB", device=device, debug=True)
    pool.free(pool.empty(n, dtype))
    a = pool.empty(n, dtype, tag="kq")
    a[...] = 0
    item = a.itemsize
    address = a.__array_interface__["data"][0] + (n + past) * item
    _bytes_at(address, item)[:] = bytes(item)
    with pytest.raises(MemoryCorruptionError, match="past the end of block 'kq'"):
        pool.free(a)
    pool.close()


@pytest.mark.parametrize("debug", [False, True])
def test_closing_while_another_thread_computes(debug):
    """A debug pool poisons what it closes: it refuses, once wrong values came of it. A plain one lets go."""
    pool = Pool("1MiB", debug=debug)
    is_in, may_go, seen = threading.Event(), threading.Event(), []

    def work():
        with pool.scope("attention"):
            a = pool.empty(10, tag="kq")
            a[...] = 7
            is_in.set()
            may_go.wait(timeout=60)
            seen.append(a.tolist())

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    assert is_in.wait(timeout=60)
    if debug:
        with pytest.raises(
            RuntimeError, match=r"other threads work on 1 block.*\n  'kq'.*'worker'"
        ):
            pool.close()
        assert not pool.closed
        with pytest.raises(ZeroDivisionError), pool:  # nor does it hide an error
            1 / 0  # noqa: B018
        assert not pool.closed and pool.used == 256
    else:
        pool.close()
    may_go.set()
    thread.join()
    pool.close()
    assert seen == [[7] * 10] and pool.closed


def _bytes_at(address, n_bytes=4):
    import ctypes

    return (ctypes.c_char * n_bytes).from_address(address)


def test_a_write_after_free_is_found_at_close():
    pool = Pool("1MiB", debug=True)
    a = pool.empty(64, tag="kq")
    view = a[:]
    pool.free(a)
    view[5] = 0
    with pytest.raises(MemoryCorruptionError, match=r"into block 'kq'.*after it was freed"):
        pool.close()
    assert pool.closed
    pool.close()


def test_a_write_after_free_is_found_when_the_quarantine_is_full(debug_pool, monkeypatch):
    monkeypatch.setattr(pool_memory, "QUARANTINE_BYTES", 1024)
    a = debug_pool.empty(64, tag="first")
    view = a[:]
    debug_pool.free(a)
    view[0] = 1
    second, third = debug_pool.empty(256), debug_pool.empty(256)
    with pytest.raises(MemoryCorruptionError, match="'first'"):
        debug_pool.free(second)
    debug_pool.free(third)
    assert debug_pool.used == 0


def test_freed_memory_is_not_handed_out_at_once(debug_pool):
    a = debug_pool.empty(64)
    debug_pool.free(a)
    b = debug_pool.empty(64)
    assert not np.shares_memory(a, b)
    debug_pool.free(b)


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_writing_to_a_kept_array_raises(device):
    pool = Pool("1MiB", device=device, debug=True)
    freed, kept = pool.empty(10), pool.empty(10)
    pool.free(freed)
    with pytest.raises(RuntimeError, match="not freed"):
        pool.close()
    for array in (freed, kept):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        assert np.isnan(array).all()


def test_close_names_what_was_not_freed():
    pool = Pool("1MiB", debug=True)
    kept = pool.empty(10, tag="kept")
    with pytest.raises(
        RuntimeError, match=r"1 block\(s\) were not freed:\n  'kept'.*test_pool_misuse.py"
    ):
        pool.close()
    assert pool.closed and pool.used == 0
    assert np.isnan(kept).all()


def test_debug_keeps_to_the_budget_as_any_pool():
    with Pool(1024, debug=True) as pool, pool.scope("s"):
        pool.empty(256)
        with pytest.raises(BudgetError):
            pool.empty(1)
    with Pool(1024, debug=True) as pool:
        for _ in range(50):  # what is in quarantine does not count
            pool.free(pool.empty(256))
