"""What a pool counts, hands out and says."""

import copy
import ctypes
import gc
import json
import pathlib
import pickle
import random
import resource
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from lowlevel.pool import ALIGNMENT, Block, BudgetError, Pool

MIB = 2**20
ROOT = pathlib.Path(__file__).parents[2]


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(params=["plain", "debug", "cudasim", "cudasim debug"])
def pool(request):
    device = "cudasim" if "cudasim" in request.param else "cpu"
    with Pool("1MiB", device=device, debug="debug" in request.param) as pool:
        yield pool


@pytest.mark.parametrize("budget", [MIB, "1MiB", "1024 KiB", float(MIB), np.int64(MIB)])
def test_budget_as_people_write_it(budget):
    with Pool(budget) as pool:
        assert (pool.budget, pool.used, pool.peak, pool.largest_free) == (MIB, 0, 0, MIB)
        assert (pool.device, pool.debug, pool.closed, pool.live) == ("cpu", False, False, [])


@pytest.mark.parametrize("budget", [-1, float("nan"), "much", "-3MiB"])
def test_budgets_that_are_none(budget):
    with pytest.raises(ValueError, match="budget"):
        Pool(budget)


def test_a_budget_must_be_given():
    with pytest.raises(TypeError, match="budget"):
        Pool(None)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "CPU", "cuda:-1"])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match=r'known are "cpu", "cuda:N" and "cudasim:N"'):
        Pool(0, device=device)


def test_a_device_is_a_name():
    with pytest.raises(TypeError, match="device: give a name"):
        Pool(0, device=0)


def test_memory_that_the_machine_does_not_have():
    with pytest.raises(MemoryError, match="machine does not give") as caught:
        Pool(2**62)
    assert not isinstance(caught.value, BudgetError)
    with pytest.raises(MemoryError, match="machine does not give"):
        Pool(2**64 - 1)
    with pytest.raises(ValueError, match=r"below 2\*\*64"):
        Pool(2**80)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "bool",
        np.int8,
        "complex128",
        "float16",
        ml_dtypes.bfloat16,
        "bfloat16",
        "S3",
        ">i4",
    ]
    + ["float8_e4m3fn", np.dtype([("a", "f4"), ("b", "u1", (3,))]), "datetime64[ns]"],
)
@pytest.mark.parametrize("shape", [(), 5, (5,), [2, 3], (3, 0, 2), (np.int64(4), 1), 0])
def test_arrays_are_whole_aligned_and_writable(pool, shape, dtype):
    a = pool.empty(shape, dtype, tag="a")
    expected = np.empty(shape, a.dtype)
    assert (a.shape, a.nbytes) == (expected.shape, expected.nbytes)
    if isinstance(dtype, np.dtype):
        assert a.dtype == dtype
    assert a.flags.c_contiguous and a.flags.writeable
    assert address(a) % ALIGNMENT == 0
    assert pool.used == -(-a.nbytes // 256) * 256
    a[...] = np.zeros((), a.dtype)
    pool.free(a)
    assert pool.used == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "match"),
    [
        ((-1,), "f4", ValueError, "shape"),
        ((2, -3), "f4", ValueError, "shape"),
        (1.5, "f4", TypeError, "shape"),
        ((1.0,), "f4", TypeError, "shape"),
        ("12", "f4", TypeError, "shape"),
        (None, "f4", TypeError, "shape"),
        ((1,) * 33, "f4", ValueError, "shape"),
        (1, "float31", TypeError, "dtype"),
        (1, None, TypeError, "dtype"),
        (1, object, TypeError, "dtype"),
        (1, [("a", "O")], TypeError, "dtype"),
        (1, "S", TypeError, "dtype"),
        (1, np.dtype(("f4", (2,))), TypeError, "dtype"),
    ],
)
def test_bad_requests_change_nothing(pool, shape, dtype, error, match):
    before = pool.snapshot()
    with pytest.raises(error, match=match):
        pool.empty(shape, dtype)
    with pytest.raises(TypeError, match="tag"):
        pool.empty(1, "f4", tag=3)
    assert pool.snapshot() == before


def test_counts_are_of_rounded_bytes(pool):
    a = pool.empty(1, "uint8")
    b = pool.empty(257, "uint8")
    assert (pool.used, pool.peak) == (768, 768)
    pool.free(a)
    assert (pool.used, pool.peak) == (512, 768)
    pool.reset_peak()
    assert pool.peak == 512
    c = pool.empty(64)
    assert (pool.used, pool.peak) == (768, 768)
    pool.free(b)
    pool.free(c)
    pool.reset_peak()
    assert (pool.used, pool.peak, pool.largest_free) == (0, 0, MIB)


def test_the_budget_is_exact_to_the_unit():
    with Pool(4 * 256 + 255) as pool:
        assert pool.largest_free == 1024
        with pytest.raises(BudgetError):
            pool.empty(1025, "uint8")
        a = pool.empty(1024, "uint8")
        assert pool.used == 1024 <= pool.budget
        with pytest.raises(BudgetError):
            pool.empty(1, "uint8")
        pool.free(a)


def test_a_budget_of_nothing_still_holds_arrays_without_elements():
    with Pool(0) as pool:
        a, b = pool.empty((0, 7), tag="a"), pool.empty(0, tag="b")
        assert [block.n_bytes for block in pool.live] == [0, 0]
        with pytest.raises(BudgetError) as caught:
            pool.empty(1)
        assert caught.value.smallest_budget == 256
        pool.free(a)
        pool.free(b)
        assert pool.live == []


def test_huge_requests_are_a_budget_error(pool):
    for shape in [2**62, (2**62, 2**62, 3), (2**200,)]:
        with pytest.raises(BudgetError) as caught:
            pool.empty(shape, "float64")
        assert caught.value.requested == 8 * np.prod(np.array(shape, object))
    assert pool.used == 0


def test_huge_lengths_beside_a_zero_change_nothing():
    with Pool(1024) as pool:
        before = pool.snapshot()
        with pytest.raises(ValueError):  # NumPy cannot say such a shape
            pool.empty((0, 2**62, 2**62))
        assert pool.snapshot() == before


def test_live_arrays_never_overlap_and_lie_in_one_arena():
    rng = np.random.default_rng(5)
    with Pool("1MiB") as pool:
        arrays = {}
        start = None
        for step in range(2000):
            if arrays and rng.random() < 0.45:
                key = rng.choice(list(arrays))
                array = arrays.pop(key)
                assert (array == key).all()  # nobody else wrote here
                pool.free(array)
            else:
                try:
                    array = pool.empty(int(rng.integers(0, 9000)), "int32", tag=str(step))
                except BudgetError:
                    continue
                array[...] = step
                arrays[step] = array
            for block in pool.live:
                array = arrays[int(block.tag)]
                if array.size:
                    start = address(array) - block.offset if start is None else start
                    assert address(array) == start + block.offset
                    assert block.offset + block.n_bytes <= pool.budget
        for key, array in arrays.items():
            assert (array == key).all()
            pool.free(array)


def test_equal_calls_give_equal_offsets_in_debug_too():
    def offsets(debug):
        rng = np.random.default_rng(11)
        with Pool("64KiB", debug=debug) as pool, pool.scope("s"):
            arrays = []
            found = []
            for _ in range(300):
                if arrays and rng.random() < 0.5:
                    pool.free(arrays.pop(int(rng.integers(len(arrays)))))
                else:
                    try:
                        arrays.append(pool.empty(int(rng.integers(1, 3000)), "uint8"))
                    except BudgetError as error:
                        found.append(error.largest_free)
                found.append([(b.offset, b.n_bytes, b.number) for b in pool.live])
            return found, pool.peak, pool.largest_free

    assert offsets(False) == offsets(False) == offsets(True)


def test_live_says_what_for_and_where(pool):
    with pool.scope("layer 0"), pool.scope("attention"):
        pool.empty((2, 3), "bfloat16", tag="kq")
        (block,) = pool.live
        assert isinstance(block, Block)
        assert block[:4] == (0, 256, 1, (2, 3))
        assert (block.tag, block.scope) == ("kq", "layer 0/attention")
        assert (block.dtype.name, block.thread) == ("bfloat16", "MainThread")
        assert block.site.startswith("test_pool.py:") if pool.debug else block.site == ""


def test_a_large_pool_costs_what_is_used_of_it():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    before = resident()
    with Pool("8GiB") as pool:
        a = pool.empty(MIB, "uint8")
        a[...] = 1
        assert resident() - before < 64 * MIB
        pool.free(a)


def test_the_arena_is_one_allocation_and_arrays_take_none():
    gc.collect()
    tracemalloc.start()
    try:
        with Pool("8MiB") as pool:
            current = tracemalloc.get_traced_memory()[0]
            assert 8 * MIB <= current <= 8 * MIB + 64 * 1024
            tracemalloc.reset_peak()
            with pool.scope("s"):
                for _ in range(8):
                    pool.empty(MIB, "uint8")[...] = 7
            assert tracemalloc.get_traced_memory()[1] - current < 64 * 1024
    finally:
        tracemalloc.stop()


def test_arrays_outlive_their_pool():
    pool = Pool("1MiB")
    kept, freed = pool.empty(1000, tag="kept"), pool.empty(1000, tag="freed")
    kept[...] = 3
    view = kept[10:20]
    pool.free(freed)
    pool.close()
    pool.close()  # a second time does nothing
    del pool
    gc.collect()
    freed[...] = 1  # memory that still exists
    assert (kept == 3).all()
    del kept
    assert (view == 3).all()


# A process whose heap keeps all that is freed, as one of gigabytes with gaps does: what malloc would place there
# is not given back.
KEEPING_HEAP = """
import ctypes
from lowlevel.pool import Pool
from tools import process
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MUCH = -1, -3, 2**31 - 1
assert all(ctypes.CDLL(None).mallopt(key, MUCH) for key in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
with Pool("64MiB") as pool:
    pool.empty(2**26, "u1", tag="all").fill(1)
    filled = process.anonymous_bytes()
print(filled - process.anonymous_bytes())
"""


def test_a_closed_pool_gives_its_memory_back_whatever_the_heap_keeps():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    command = [sys.executable, "-c", KEEPING_HEAP]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 63 * MIB  # reading the status takes a page or two


def test_a_closed_pool_still_tells_its_peak():
    with Pool(4096) as pool:
        with pool.scope("s"):
            pool.empty(100, tag="kq")
    assert pool.closed
    assert (pool.budget, pool.used, pool.peak, pool.largest_free) == (4096, 0, 512, 0)
    assert pool.live == []
    assert [block["tag"] for block in pool.snapshot()["at_peak"]["live"]] == ["kq"]
    assert "closed" in repr(pool)


# ---------------------------------------------------------------- scopes


def test_a_scope_frees_what_was_taken_inside(pool):
    outside = pool.empty(10, tag="outside")
    with pool.scope("a") as scope:
        assert scope.path == "a"
        inside = pool.empty(10, tag="inside")
        with pool.scope("b"):
            pool.empty(10, tag="b")
            pool.free(inside)  # an outer scope's array
            pool.free(outside)  # nobody's
            assert [block.tag for block in pool.live] == ["b"]
        pool.empty(20)
    assert pool.live == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_scope_frees_on_an_exception_too(pool, error):
    with pytest.raises(error), pool.scope("a"):
        pool.empty(10)
        with pool.scope("b"):
            pool.empty(10)
            raise error
    assert pool.used == 0
    with pool.scope("a"):  # and the thread is out of both
        pool.empty(1)
        assert pool.live[0].scope == "a"


def test_an_array_that_left_its_scope_by_free_is_not_freed_again(pool):
    with pool.scope("a"):
        first = pool.empty(10)
        pool.free(first)
        with pool.scope("b"):
            pool.empty(10, tag="second")
        third = pool.empty(10)
        assert third is not first


# ---------------------------------------------------------------- the error


def filled(budget=4096):
    pool = Pool(budget)
    blocks = [pool.empty(128, tag=tag) for tag in ("kq", "v", "kq", "out", "kq", "v", "v")]
    return pool, blocks


def test_budget_error_names_the_holders_and_a_budget_that_works():
    pool, blocks = filled()
    for i in (1, 3):  # holes of 512 bytes, and 512 at the end
        pool.free(blocks[i])
    before = pool.snapshot()
    with pytest.raises(MemoryError) as caught:
        pool.empty(300, "float16", tag="mask")
    assert pool.snapshot() == before
    error = caught.value
    assert type(error) is BudgetError
    assert (error.requested, error.rounded, error.budget, error.used) == (600, 768, 4096, 2560)
    assert (error.largest_free, error.fragmented) == (512, True)
    assert error.fragmentation == pytest.approx(2 / 3)
    assert [(h["tag"], h["n_bytes"], h["n_blocks"]) for h in error.holders] == [
        ("kq", 1536, 3),
        ("v", 1024, 2),
    ]
    text = str(error)
    assert all(
        part in text for part in ("'mask'", "600 B", "768", "4096 B", "'kq'", "fragmentation")
    )
    assert error.remedy in text and "fragmentation alone" in error.remedy
    pool.close()
    # The remedy is true: a pool of that budget and the same history holds it, one unit less does not.
    assert error.smallest_budget == 3584 + 768
    for budget, fits in ((error.smallest_budget, True), (error.smallest_budget - 1, False)):
        with filled(budget)[0] as pool:
            for i in (1, 3):
                pool.free(next(a for a, b, _ in pool._live.values() if b.number == i + 1))
            with pool.scope("try"):
                if fits:
                    pool.empty(300, "float16")
                else:
                    with pytest.raises(BudgetError):
                        pool.empty(300, "float16")


def test_budget_error_without_fragmentation():
    with Pool(1024) as pool, pool.scope("s"):
        pool.empty(128, tag="kq")
        with pytest.raises(BudgetError) as caught:
            pool.empty(1024, "uint8")
        assert not caught.value.fragmented
        assert caught.value.smallest_budget == 1536
        assert "512 B more than is free" in caught.value.remedy


def test_budget_error_travels():
    with Pool(1024, debug=True) as pool, pool.scope("s"):
        pool.empty(1, tag="kq")
        with pytest.raises(BudgetError) as caught:
            pool.empty(2**40)
    error = caught.value
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is BudgetError
    assert str(again) == str(error)
    assert again.to_dict() == error.to_dict() == json.loads(json.dumps(error.to_dict()))
    assert error.holders[0]["sites"][0].startswith("test_pool.py:")
    assert "test_pool.py:" in str(error)


def test_budget_error_travels_with_what_others_put_on_it():
    """Notes (as Hypothesis adds them) are kept, and are no part of the plain data."""
    error = BudgetError("too small", requested=10, budget=4)
    fields = error.to_dict()
    error.__notes__ = ["while loading"]  # add_note, of Python 3.11
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert again.__notes__ == ["while loading"]
        assert again.to_dict() == error.to_dict() == fields


def test_budget_error_shows_few_holders_and_sums_the_rest():
    with Pool(4096) as pool, pool.scope("s"):
        for i in range(9):
            pool.empty(1, tag=f"t{i}")
        with pytest.raises(BudgetError, match=r"4 other tag\(s\): 1024 B"):
            pool.empty(4096)


def test_budget_error_of_other_makers():
    error = BudgetError("too small", requested=10, budget=4, remedy="give 10")
    assert (str(error), error.rounded, error.largest_free, error.fragmented) == (
        "too small",
        10,
        4,
        False,
    )
    assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()


# ---------------------------------------------------------------- the snapshot


def test_snapshot_is_plain_data_and_tells_who_made_the_peak(pool):
    with pool.scope("s"):
        a = pool.empty(1000, tag="kq")
        b = pool.empty(500, tag="v")
        pool.free(a)
        pool.empty(10, tag="later")
        pool.free(b)
        snapshot = pool.snapshot()
        live = pool.live
    assert json.loads(json.dumps(snapshot)) == snapshot
    assert snapshot["version"] == 1
    assert (snapshot["used"], snapshot["peak"], snapshot["budget"]) == (256, 6144, MIB)
    assert snapshot["largest_free"] == MIB - 256
    assert [block["tag"] for block in snapshot["live"]] == ["later"]
    assert snapshot["live"] == [block.to_dict() for block in live]
    at_peak = snapshot["at_peak"]
    assert at_peak["used"] == sum(block["n_bytes"] for block in at_peak["live"]) == 6144
    assert [block["tag"] for block in at_peak["live"]] == ["kq", "v"]
    assert [holder["tag"] for holder in at_peak["holders"]] == ["kq", "v"]


def test_at_peak_is_right_after_every_step():
    rng = np.random.default_rng(3)
    with Pool("64KiB") as pool, pool.scope("s"):
        arrays, at_peak = [], []
        for step in range(1500):
            if rng.random() < 0.01:
                pool.reset_peak()
                at_peak = pool.live
            elif arrays and rng.random() < 0.5:
                pool.free(arrays.pop(int(rng.integers(len(arrays)))))
            else:
                peak = pool.peak
                try:
                    arrays.append(
                        pool.empty(int(rng.integers(0, 4000)), "uint8", tag=str(step % 5))
                    )
                except BudgetError:
                    continue
                if pool.peak > peak:
                    at_peak = pool.live
            snapshot = pool.snapshot()
            with_bytes = [block.to_dict() for block in at_peak if block.n_bytes]
            assert [b for b in snapshot["at_peak"]["live"] if b["n_bytes"]] == with_bytes
            assert sum(b["n_bytes"] for b in with_bytes) == pool.peak


@pytest.mark.parametrize("seed", range(200))
def test_the_remedy_holds_for_the_same_history_run_again(seed):
    """The budget that a refusal names is enough, placing all from the start; one unit less is not."""
    rng = random.Random(seed)
    steps = [
        (rng.random() < 0.45, rng.randrange(1, 3000), rng.randrange(2**30)) for _ in range(100)
    ]
    refused, n_steps = _run_history(rng.randrange(4, 60) * 256, steps)
    if refused is None:
        return
    steps = steps[:n_steps]
    assert _run_history(refused.smallest_budget, steps)[0] is None
    assert _run_history(refused.smallest_budget - 1, steps)[0] is not None


def _run_history(budget, steps):
    """The first refusal, or None; how many steps that took."""
    live = []
    with Pool(budget) as pool, pool.scope("history"):
        for n_steps, (frees, n_bytes, which) in enumerate(steps, 1):
            if frees and live:
                pool.free(live.pop(which % len(live)))
                continue
            try:
                live.append(pool.empty(n_bytes, "uint8"))
            except BudgetError as error:
                return error, n_steps
    return None, len(steps)


def test_a_pool_in_a_block_of_another():
    with Pool("64KiB") as outer:
        block = outer.empty(4096, "uint8")
        with Pool(4096, memory=block) as inner:
            a = inner.empty(1024, "float32")
            a[:] = 7
            assert inner.used == 4096 and outer.used == 4096
            assert np.shares_memory(a, block)
            with pytest.raises(BudgetError):
                inner.empty(1)
            inner.free(a)
        assert (block.view("float32") == 7).all()
        for bad, kind in ((block[:100], ValueError), (block[1:], ValueError), ([], TypeError)):
            with pytest.raises(kind, match="memory"):
                Pool(4096, memory=bad)
        outer.free(block)
