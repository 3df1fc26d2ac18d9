"""Pools and streams: memory goes from one stream to another only behind an event; `lowlevel.pool.stream_order`."""

import contextlib
import random
import secrets
import threading

import numpy as np
import pytest

import lowlevel
from lowlevel import Pool, asarray, asnumpy, cudasim, devices
from lowlevel.cudasim import StreamError
from lowlevel.pool import BudgetError
from lowlevel.pool.stream_order import StreamOrder

KIB = 1024


@pytest.fixture
def new_stream(device):
    """Makes streams of the device; each is a context manager."""
    if device == "cudasim":
        return cudasim.Stream
    cupy = pytest.importorskip("cupy")
    return lambda: cupy.cuda.Stream(non_blocking=True)


@pytest.fixture
def unordered(monkeypatch):
    """Pools as they were without the rule."""
    monkeypatch.setattr(StreamOrder, "taken", lambda order, offset, n_bytes: None)
    monkeypatch.setattr(StreamOrder, "freed", lambda order, offset, n_bytes: None)


def copy(device, target, source):
    devices.get(device).copy_flat(target, source)


def hand_over(device, new_stream, pool, n_copies=1):
    """Work on a block in one stream, which is freed and taken in another at once; what is in it at the end."""
    n_bytes = pool.budget
    first, second = new_stream(), new_stream()
    ones, twos = (asarray(np.full(n_bytes, i, np.uint8), device) for i in (1, 2))
    devices.get(device).finish()
    with first:
        block = pool.empty(n_bytes, "uint8")
        for _ in range(n_copies):
            copy(device, block, ones)
        pool.free(block)
    with second:
        block = pool.empty(n_bytes, "uint8")
        copy(device, block, twos)
        devices.get(device).finish()
        result = asnumpy(block)
        pool.free(block)
    return result


def test_a_block_that_changes_streams_is_waited_for(device, new_stream):
    # On a GPU the first stream has 100 ms of work when the second takes its block.
    n_bytes, n_copies = (64 * KIB, 1) if device == "cudasim" else (2**28, 500)
    with Pool(n_bytes, device=device) as pool:
        assert (hand_over(device, new_stream, pool, n_copies) == 2).all()


@pytest.mark.parametrize("which", ["a", "c", "workspace"])
def test_products_belong_to_their_stream(which):
    """A product's operands, its result and its workspace."""
    target, first, second = devices.get("cudasim"), cudasim.Stream(), cudasim.Stream()
    a, b, c = (asarray(np.zeros((1, 4, 4), np.float32), "cudasim") for _ in range(3))
    workspace = asarray(np.zeros(64, np.float32), "cudasim")
    other = {"a": a, "c": c, "workspace": workspace}[which]
    values = asarray(np.zeros(other.shape, np.float32), "cudasim")
    target.finish()
    with first, target.gemm(workspace) as gemm:
        gemm(a, b, c)
    with second, pytest.raises(StreamError, match=r"copy on stream .* gemm on stream"):
        copy("cudasim", other, values)


def test_without_the_rule_the_simulator_complains(unordered):
    with (
        Pool(64 * KIB, device="cudasim") as pool,
        pytest.raises(StreamError, match=r"copy on stream \d+ writes .*nothing makes the one wait"),
        pool.scope("s"),
    ):
        hand_over("cudasim", cudasim.Stream, pool)


@pytest.mark.gpu
def test_without_the_rule_a_gpu_mixes_them_up(unordered):
    """That the test above could fail at all."""
    cupy = pytest.importorskip("cupy")
    stream = lambda: cupy.cuda.Stream(non_blocking=True)  # noqa: E731
    with Pool(2**28, device="cuda:0") as pool:
        assert (hand_over("cuda:0", stream, pool, 500) != 2).any()


def test_a_block_freed_on_another_stream_than_it_was_taken_on(device, new_stream):
    """The first stream may still be at work on it: whoever takes it next waits for both."""
    n_bytes, n_copies = (4 * KIB, 1) if device == "cudasim" else (2**28, 500)
    streams = [new_stream() for _ in range(3)]
    ones, twos = (asarray(np.full(n_bytes, i, np.uint8), device) for i in (1, 2))
    devices.get(device).finish()
    with Pool(n_bytes, device=device) as pool:
        with streams[0]:
            block = pool.empty(n_bytes, "uint8")
            for _ in range(n_copies):
                copy(device, block, ones)
        with streams[1]:
            pool.free(block)
        with streams[2]:
            block = pool.empty(n_bytes, "uint8")
            copy(device, block, twos)
            devices.get(device).finish()
            assert (asnumpy(block) == 2).all()
            pool.free(block)


def test_streams_in_two_threads(device, new_stream):
    """Each with a stream of its own, on one small pool: what a thread wrote is there until it frees it."""
    n_bytes, n_rounds = (16 * KIB, 60) if device == "cudasim" else (2**24, 200)
    sources = [asarray(np.full(n_bytes, i, np.uint8), device) for i in (1, 2)]
    devices.get(device).finish()
    errors = []

    def work(number):
        try:
            with new_stream():
                for _ in range(n_rounds):
                    try:
                        block = pool.empty(n_bytes, "uint8")
                    except BudgetError:
                        continue
                    copy(device, block, sources[number])
                    if not (asnumpy(block) == number + 1).all():
                        errors.append(number)
                    copy(device, block, sources[number])
                    pool.free(block)
        except BaseException as error:
            errors.append(error)

    with Pool(n_bytes * 3 // 2, device=device) as pool:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors


def test_attention_on_streams_in_turn(device, new_stream, rng):
    """Calls on one pool, each on the other stream, agree with one on the default stream."""
    q, k, v = (
        asarray(rng.standard_normal((4, n, 64)).astype(np.float16), device) for n in (20, 90, 90)
    )
    with Pool("1MiB", device=device) as pool:
        expected = asnumpy(lowlevel.attention(q, k, v, pool=pool))
        devices.get(device).finish()
        streams, outs = [new_stream(), new_stream()], []
        for number in range(4):
            with streams[number % 2]:
                outs.append(lowlevel.attention(q, k, v, pool=pool))
        devices.get(device).finish()
        for out in outs:
            assert np.array_equal(asnumpy(out), expected)


def test_debug_pools_too(device, new_stream):
    source = asarray(np.ones(8 * KIB, np.uint8), device)
    devices.get(device).finish()
    with Pool("64KiB", device=device, debug=True) as pool:
        for _ in range(10):
            with new_stream():
                block = pool.empty(8 * KIB, "uint8")
                copy(device, block, source)
            with new_stream():
                pool.free(block)


def test_an_interrupt_waits_for_everything(device, new_stream, monkeypatch):
    """After one nobody knows what was noted: the books start anew once the device is idle."""
    calls = []
    target = devices.get(device)
    finish = target.finish
    with Pool(4 * KIB, device=device) as pool:
        with new_stream():
            kept, block = pool.empty(256), pool.empty(256)
            monkeypatch.setattr(target, "finish", lambda: (calls.append(1), finish()))
            monkeypatch.setattr(StreamOrder, "_add", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.free(block)
            monkeypatch.undo()
        assert calls and pool._order.parts() == []
        with new_stream():
            pool.free(pool.empty(512))
            pool.free(kept)
        assert pool.used == 0


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.gpu
def test_the_per_thread_default_stream_is_refused():
    cupy = pytest.importorskip("cupy")
    with Pool("1MiB", device="cuda:0") as pool, cupy.cuda.Stream.ptds:
        with pytest.raises(ValueError, match="per-thread default stream"):
            pool.empty(10)
        assert pool.used == 0
    with Pool("1MiB", device="cuda:0") as pool:
        pool.free(pool.empty(10))


# ---------------------------------------------------------------- the books, on the simulator


def test_any_history_of_streams_is_in_order():
    """Every block is written when taken and before it is freed; the simulator knows what that must wait for."""
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    target = devices.get("cudasim")
    source = asarray(np.ones(2048, np.uint8), "cudasim")
    streams = [cudasim.Stream() for _ in range(4)]
    n_waits = 0
    with Pool(16 * KIB, device="cudasim") as pool:
        live = []
        for step in range(3000):
            if rng.random() < 0.01:  # streams come and go
                streams[rng.randrange(4)] = cudasim.Stream()
            with rng.choice([*streams, contextlib.nullcontext()]):
                if live and rng.random() < 0.5:
                    index = rng.randrange(len(live))
                    block, owner = live.pop(index)
                    with owner:
                        copy("cudasim", block, source[: block.size])
                    pool.free(block)
                else:
                    try:
                        block = pool.empty(rng.randrange(1, 2048), "uint8")
                    except BudgetError:
                        continue
                    copy("cudasim", block, source[: block.size])
                    now = cudasim.streams.current()
                    live.append((block, now))
            if step % 50 == 0:
                check_books(pool)
                n_waits += len({owner for _, _, owner in pool._order.parts()}) > 1
        assert n_waits > 10 and len(pool._order._freed_on) < 16
        for block, _ in live:
            pool.free(block)
    target.finish()


def check_books(pool):
    """The parts lie in the arena's holes, without overlap, and neighbours have different owners."""
    parts = pool._order.parts()
    holes = pool._arena.holes()
    edge, last = -1, None
    for start, end, owner in parts:
        assert edge <= start < end and (start, owner) != (edge, last)
        assert any(at <= start and end <= at + n_bytes for at, n_bytes in holes)
        edge, last = end, owner
    assert set(pool._order._taken_on) == {b.offset for b in pool.live if b.n_bytes}


def test_one_stream_has_one_part_and_waits_for_nobody(monkeypatch):
    target = devices.get("cudasim")
    monkeypatch.setattr(target, "wait", interrupt)
    rng = random.Random(1)
    with Pool(16 * KIB, device="cudasim") as pool:
        for _ in range(200):
            arrays = [pool.empty(rng.randrange(1, 1000), "uint8") for _ in range(5)]
            rng.shuffle(arrays)
            for array in arrays:
                pool.free(array)
            assert len(pool._order.parts()) == 1


# ---------------------------------------------------------------- the simulated streams themselves


def test_what_the_simulator_orders():
    target = devices.get("cudasim")
    a, b = (asarray(np.zeros(512, np.uint8), "cudasim") for _ in range(2))
    first, second = cudasim.Stream(), cudasim.Stream()
    target.finish()

    def put(stream, destination, source):
        with stream:
            target.copy_flat(destination, source)

    put(first, a, b)
    put(first, a, b)  # one stream is in order
    with pytest.raises(StreamError, match="writes"):
        put(second, a, b)
    with pytest.raises(StreamError, match="reads"):
        put(second, b[:1], a[511:])
    put(second, cudasim.empty(512, "uint8"), b)  # two may read
    second.wait(first.record())
    put(second, a, b)
    with pytest.raises(StreamError):
        put(first, a, b)  # the event says nothing of the other way
    second.synchronise()
    put(first, a, b)
    put(first, b[:256], a[:256])
    put(second, cudasim.empty(256, "uint8"), b[256:])  # other bytes
    with pytest.raises(StreamError, match="reads memory"):
        put(second, cudasim.empty(200, "uint8"), b[200:400])
    with pytest.raises(StreamError, match="reads; nothing"):  # it was read for `a`
        put(second, b[256:], cudasim.empty(256, "uint8"))
    target.finish()
    put(second, b, a)


def test_new_memory_has_no_past():
    stream = cudasim.Stream()
    source = asarray(np.zeros(2**16, np.uint8), "cudasim")
    devices.get("cudasim").finish()
    for _ in range(20):
        with stream:
            devices.get("cudasim").copy_flat(cudasim.empty(2**16, "uint8"), source)
        devices.get("cudasim").copy_flat(cudasim.empty(2**16, "uint8"), source)


def test_current_streams_are_a_threads_own():
    first, second = cudasim.Stream(), cudasim.Stream()
    with first:
        with second:
            assert cudasim.streams.current() is second
        assert cudasim.streams.current() is first
        seen = []
        thread = threading.Thread(target=lambda: seen.append(cudasim.streams.current().ptr))
        thread.start()
        thread.join()
        assert seen == [0]
    assert cudasim.streams.current().ptr == 0
