"""Replays: the pool's own placement comes out again, and "would it have fit?" is answered rightly."""

import random
import secrets

import pytest
from traces import Lines, block, record

from lowlevel.inspect.replay import GIVE, TAKE, Requests, read_requests, replay, smallest_budget
from lowlevel.pool import BudgetError, Pool
from lowlevel.pool.arena import Arena
from lowlevel.pool.policies import POLICIES
from lowlevel.pool.trace import Trace


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def new_rng():
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def random_requests(rng, n=300, most=20):
    requests = Requests(pool=1, device="cpu", budget=2**40)
    live, used = [], 0
    for _ in range(n):
        if live and (len(live) > most or rng.random() < 0.45):
            index = live.pop(rng.randrange(len(live)))
            used -= requests.sizes[index]
            requests.steps.append((GIVE, index))
        else:
            index = len(requests.sizes)
            live.append(index)
            requests.steps.append((TAKE, index))
            requests.sizes.append(256 * rng.randrange(40))
            requests.tags.append("")
            requests.times.append(0.0)
            used += requests.sizes[index]
        requests.peak = max(requests.peak, used)
    return requests


def test_as_recorded_it_fits_and_takes_the_same(path):
    said = record(path, new_rng())
    requests = read_requests(path)[1]
    result = replay(requests)
    # the recorded pool may have had holes from before: a fresh arena can only do as well or differ in holes
    assert result.peak == requests.peak == said["peak"] or not result.fits
    assert result.n_refused_then == said["n_refused"] and (not said["n_refused"] or not result.fits)
    roomy = replay(requests, 2**40)
    assert roomy.fits and roomy.peak == requests.demand >= said["peak"]
    assert roomy.n_granted_now == roomy.n_refused_then == said["n_refused"]


def test_what_was_refused_counts(path):
    """In the budget that refused it the run does not fit; in the smallest that holds it, as far as the trace tells."""
    lines = Lines(budget=1024).alloc(1, 0, 512, "k")
    lines.add("refuse", size=768, tag="kq", error={}).free(1, 0, 512, "k").write(path)
    requests = read_requests(path)[1]
    result = replay(requests)
    assert (result.fits, result.n_refused, result.known_until) == (False, 1, None)
    assert result.failure == {
        "t": 0.003, "size": 768, "tag": "kq", "used": 512, "largest_free": 512,
        "fragmented": False, "refused_then": True,
    }  # fmt: skip
    assert (requests.peak, requests.demand, requests.n_after_refusal) == (512, 1280, 0)
    assert smallest_budget(requests) == 1280
    result = replay(requests, 1280)
    assert (result.fits, result.n_granted_now, result.peak) == (True, 1, 1280)
    assert result.known_until == 0.003
    result = replay(requests, 256)  # another end, and an earlier one
    assert (result.fits, result.n_refused, result.known_until) == (False, 2, 0.002)


def test_holes_from_before_the_recording_refused_it(path):
    """A fresh arena would have had the room: that it was refused in this budget is a fact all the same."""
    lines = Lines(budget=1024, used=512)
    lines.alloc(1, 0, 256, used=512).alloc(2, 512, 256, used=512)
    lines.used = 512
    lines.add("refuse", size=512, tag="x", error={}).write(path)
    result = replay(read_requests(path)[1])
    assert not result.fits and result.failure["fragmented"]


def test_a_pool_of_another_budget_refuses_what_its_replay_says(path):
    """The same requests put to a real pool: the same first refusal, at the same fill."""
    rng = new_rng()
    with Pool("64KiB") as pool, Trace(path) as trace, pool.scope("s"):
        trace.attach(pool)
        sizes = [rng.randrange(1, 6000) for _ in range(12)]
        for size in sizes:
            try:
                pool.empty(size, "uint8")
            except BudgetError:
                break
    requests = read_requests(path)[1]
    for budget in range(256, 32768, 3000):
        result = replay(requests, budget)
        with Pool(budget) as pool, pool.scope("s"):
            try:
                for size in requests.sizes:
                    pool.empty(size, "uint8")
                assert result.fits
            except BudgetError as error:
                assert not result.fits
                assert (result.failure["size"], result.failure["used"], result.failure["largest_free"]) == (
                    error.rounded, error.used, error.largest_free,
                )  # fmt: skip
                assert result.failure["fragmented"] == error.fragmented


@pytest.mark.parametrize("policy", POLICIES)
def test_smallest_budget_is_proven_and_tight(policy):
    rng = new_rng()
    for _ in range(5):
        requests = random_requests(rng)
        smallest = smallest_budget(requests, policy)
        assert replay(requests, smallest, policy).fits
        assert smallest >= requests.peak
        if smallest > requests.peak:
            assert not replay(requests, smallest - 256, policy).fits


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_keep_blocks_apart(policy):
    rng = new_rng()
    size = 256 * rng.randrange(50, 300)
    arena, live = POLICIES[policy](size), {}
    for _ in range(2000):
        if live and rng.random() < 0.5:
            offset = rng.choice(list(live))
            arena.give(offset, live.pop(offset))
        else:
            n_bytes = 256 * rng.randrange(1, 12)
            offset = arena.take(n_bytes)
            if offset is None:
                assert arena.largest_free < (
                    n_bytes if policy != "buddy" else 1 << (n_bytes - 1).bit_length()
                )
            else:
                assert arena.end >= offset + n_bytes
                live[offset] = n_bytes
        Arena(size, live.items())  # raises where blocks overlap or leave it
        if policy != "buddy":
            assert arena.used == sum(live.values())
    for offset, n_bytes in live.items():
        arena.give(offset, n_bytes)
    assert arena.used == 0
    largest = size if policy != "buddy" else 1 << (size.bit_length() - 1)
    assert arena.largest_free == largest


def test_refusals_go_on_without_the_block(path):
    Lines().alloc(1, 0, 1024, "kq").alloc(2, 1024, 512, "v").free(1, 0, 1024).write(path)
    result = replay(read_requests(path)[1], 512)
    assert (result.fits, result.n_refused, result.peak) == (False, 1, 512)
    assert result.failure["tag"] == "kq" and result.failure["t"] == pytest.approx(0.002)
    assert not result.failure["fragmented"]


def test_an_interrupt_in_the_trace(path):
    lines = Lines().alloc(1, 0, 256).alloc(2, 256, 256)
    lines.used = 512
    lines.add("resync", live=[block(1, 0, 256), block(3, 512, 256)])
    lines.free(3, 512, 256).free(1, 0, 256).write(path)
    assert smallest_budget(read_requests(path)[1]) == 512


def test_bad_arguments(path, tmp_path):
    said = record(path, random.Random(1))
    requests = read_requests(path)[1]
    with pytest.raises(ValueError, match="policy: one of best-fit"):
        replay(requests, policy="fastest")
    with pytest.raises(ValueError, match="budget"):
        replay(requests, "much")
    with pytest.raises(ValueError, match="at most"):
        replay(requests, 2**63)
    import json

    (tmp_path / "s.json").write_text(json.dumps(said["snapshot"]))
    with pytest.raises(ValueError, match="a snapshot"):
        read_requests(tmp_path / "s.json")
