"""The allocator against the simplest thing that could be right: a row of bytes."""

import random

import pytest

from lowlevel.pool.arena import ALIGNMENT, Arena, align_up, smallest_size

UNIT = ALIGNMENT


class ByteRow:
    """The same policy (smallest hole, lowest among equals, the arena's end last), found by looking at every unit."""

    def __init__(self, n_units):
        self.taken = [False] * n_units

    def holes(self):
        holes, start = [], None
        for i, taken in enumerate([*self.taken, True]):
            if taken and start is not None:
                holes.append((start, i - start))
                start = None
            elif not taken and start is None:
                start = i
        return holes

    def take(self, n):
        n_units = len(self.taken)
        fitting = [
            (start + length == n_units, length, start)
            for start, length in self.holes()
            if length >= n
        ]
        if not fitting:
            return None
        start = min(fitting)[2]
        self.taken[start : start + n] = [True] * n
        return start

    def give(self, start, n):
        self.taken[start : start + n] = [False] * n


@pytest.mark.parametrize("seed", range(20))
def test_same_offsets_and_holes_as_a_row_of_bytes(seed):
    rng = random.Random(seed)
    n_units = rng.choice([1, 7, 40, 100])
    arena, row = Arena(n_units * UNIT), ByteRow(n_units)
    live = []
    for _ in range(400):
        if live and rng.random() < 0.5:
            start, n = live.pop(rng.randrange(len(live)))
            arena.give(start * UNIT, n * UNIT)
            row.give(start, n)
        else:
            n = rng.randint(1, rng.choice([3, n_units + 2]))
            start, offset = row.take(n), arena.take(n * UNIT)
            assert offset == (None if start is None else start * UNIT)
            if start is not None:
                live.append((start, n))
        assert arena.holes() == [(s * UNIT, n * UNIT) for s, n in row.holes()]
        assert arena.used == sum(row.taken) * UNIT
        assert arena.largest_free == max((n for _, n in row.holes()), default=0) * UNIT
        rebuilt = Arena(arena.size, [(s * UNIT, n * UNIT) for s, n in live])
        assert rebuilt.holes() == arena.holes()
        assert rebuilt.used == arena.used


@pytest.mark.parametrize("seed", range(20))
def test_smallest_size_is_the_smallest(seed):
    rng = random.Random(seed)
    row = ByteRow(30)
    blocks = []
    for _ in range(rng.randint(0, 12)):
        n = rng.randint(1, 5)
        start = row.take(n)
        if start is not None:
            blocks.append((start, n))
    kept = [(s * UNIT, n * UNIT) for s, n in blocks if rng.random() < 0.6]
    wanted = rng.randint(1, 8) * UNIT
    size = smallest_size(wanted, kept)
    assert Arena(size, kept).take(wanted) is not None
    end = max((offset + n for offset, n in kept), default=0)
    for smaller in range(end, size, UNIT):
        assert Arena(smaller, kept).take(wanted) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_arena_places_everything_alike(seed):
    rng = random.Random(seed)
    small, large = Arena(60 * UNIT), Arena(rng.randint(61, 90) * UNIT)
    live = []
    for _ in range(300):
        n_bytes = rng.randint(1, 12) * UNIT
        if live and rng.random() < 0.45:
            offset, n_bytes = live.pop(rng.randrange(len(live)))
            small.give(offset, n_bytes)
            large.give(offset, n_bytes)
        elif small.largest_free >= n_bytes:
            offset = small.take(n_bytes)
            assert large.take(n_bytes) == offset
            live.append((offset, n_bytes))


def test_an_arena_of_nothing_holds_nothing():
    arena = Arena(0)
    assert arena.take(UNIT) is None
    assert (arena.used, arena.largest_free, arena.holes()) == (0, 0, [])


@pytest.mark.parametrize("blocks", [[(0, 512), (256, 256)], [(768, 512)], [(-256, 256)]])
def test_blocks_that_overlap_or_stick_out_are_refused(blocks):
    with pytest.raises(ValueError, match="overlaps or leaves"):
        Arena(1024, blocks)


@pytest.mark.parametrize(
    ("n_bytes", "rounded"), [(0, 0), (1, 256), (256, 256), (257, 512), (2**63 + 1, 2**63 + 256)]
)
def test_align_up(n_bytes, rounded):
    assert align_up(n_bytes) == rounded
