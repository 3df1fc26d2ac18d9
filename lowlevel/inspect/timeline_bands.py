"""What a picture of memory over time stacks and lays out: bytes by tag, scope, source line, age; blocks by moment.

Each recorder takes in the blocks that one pool takes and gives back, in order; `lowlevel.inspect.timeline` says when a moment of
the picture is over and which of its events it shows.
"""

from __future__ import annotations

import collections
import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lowlevel.inspect.state import LiveBlock


MAX_BANDS = 16
MAX_BLOCKS = 10_000
FREED_LATER = "(freed later)"
# Ages are told apart by powers of ten, so many below the length of the run; a trace's clock ticks microseconds.
AGE_DECADES = 4
SHORTEST_AGE = 1e-6
_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


class Bands:
    """Bytes by a name that every block has.

    Parameters
    ----------
    peaks : dict of str to int
        Every name with the bytes that decide its place: the most come first.
    name_of : callable
        LiveBlock -> name.
    what : str
        The names in the plural: where they are too many, the rest is "(7 other tags)".
    last : str, optional
        A name that has the last band, however many bytes it has.

    Attributes
    ----------
    names : list of str
    used : list of int
        Bytes of each.
    """

    def __init__(
        self, peaks: dict[str, int], name_of: Callable[..., Any], what: str, last: str | None = None
    ) -> None:
        names = sorted(peaks, key=lambda name: (-peaks[name], name)) or [""]
        most = MAX_BANDS - (last is not None)
        n_named = most - 1 if len(names) > most else len(names)
        self._index_of = {name: index for index, name in enumerate(names[:n_named])}
        if len(names) > most:
            names = [*names[:n_named], f"({len(names) - n_named} other {what})"]
        self._other = len(names) - 1
        if last is not None:
            self._index_of[last] = len(names)
            names = [*names, last]
        self.names = names
        self.used = [0] * len(names)
        self._name_of = name_of

    def index(self, block: LiveBlock) -> int:
        return self._index_of.get(self._name_of(block), self._other)

    def add(self, block: LiveBlock, n_bytes: int) -> None:
        """Count a block that was taken, or (n_bytes below 0) given back."""
        self.used[self.index(block)] += n_bytes


class Ages:
    """Bytes by how long their blocks have been held by now, the oldest first.

    Parameters
    ----------
    seconds : float
        How long the run took.

    Attributes
    ----------
    names : list of str
    least : list of float or None
        The age from which on a block belongs to each band, seconds; None: it is from before the recording.
    used : list of int
    """

    def __init__(self, seconds: float) -> None:
        decade = math.floor(math.log10(max(seconds, 10 * SHORTEST_AGE)))
        limits = [10.0**power for power in range(decade, decade - AGE_DECADES, -1)]
        limits = [limit for limit in limits if limit >= 0.99 * SHORTEST_AGE]
        self.least = [None, *limits, 0.0]
        over = [f"{_duration(limits[0])} and more"]
        between = [
            f"{_duration(low)} to {_duration(high)}" for high, low in itertools.pairwise(limits)
        ]
        self.names = [
            "from before the recording", *over, *between, f"under {_duration(limits[-1])}"
        ]  # fmt: skip
        self.used = [0] * len(self.names)
        # Of each band: (t, number) in the order in which they will leave it; from the first two none does.
        self._waiting: Any = [collections.deque() for _ in self.names]
        self._band_of: dict[Any, Any] = {}  # number of a live block -> its band, bytes and t

    def add(self, block: LiveBlock, n_bytes: int) -> None:
        """Count a block that was taken, or (n_bytes below 0) given back."""
        if n_bytes < 0:
            band = self._band_of.pop(block.number)[0]
        else:
            band = 0 if block.t is None else len(self.names) - 1
            self._band_of[block.number] = band, n_bytes, block.t
            if band:
                self._waiting[band].append((block.t, block.number))
        self.used[band] += n_bytes

    def advance(self, t: float) -> None:
        """It is `t` now."""
        for band in range(len(self.names) - 1, 1, -1):
            waiting, limit = self._waiting[band], self.least[band - 1]
            while waiting and t - waiting[0][0] >= limit:
                taken = waiting.popleft()
                held = self._band_of.get(taken[1])
                if held is None or held[0] != band or held[2] != taken[0]:
                    continue  # freed meanwhile
                self.used[band] -= held[1]
                self.used[band - 1] += held[1]
                self._band_of[taken[1]] = (band - 1, *held[1:])
                self._waiting[band - 1].append(taken)


class Blocks:
    """The blocks that are live at any moment that the picture shows; of too many, the largest.

    Parameters
    ----------
    kept : set of LiveBlock
        Those that are kept before all others.
    """

    def __init__(self, kept: set[LiveBlock]) -> None:
        self._kept = kept
        self._live: dict[
            Any, Any
        ] = {}  # number -> [block, event, first moment, moment after the last, end]
        self._seen: list[Any] = []
        self._taken: list[Any] = []  # since the last moment was over
        self._given: list[Any] = []
        self._n_left_out = 0
        self._highest = 0

    def take(self, block: LiveBlock, i: int) -> None:
        held = self._live[block.number] = [block, i, None, None, None]
        self._taken.append(held)
        self._highest = max(self._highest, block.offset + block.n_bytes)

    def give(self, block: LiveBlock, i: int, t: float) -> None:
        held = self._live.pop(block.number)
        held[4] = t
        self._given.append((held, i))

    def close(self, moment: int, i: int) -> None:
        """A moment is over; it shows what was live after event i."""
        for held in self._taken:
            held[2] = moment if held[1] <= i else moment + 1
        for held, given_i in self._given:
            held[3] = moment + 1 if given_i > i else moment
            if held[2] < held[3]:
                self._seen.append(held)
        self._taken, self._given = [], []
        if len(self._seen) > 4 * MAX_BLOCKS:
            self._seen = self._most_telling(self._seen)

    def data(self, n_moments: int, bands: dict[str, Any]) -> dict[str, Any]:
        """Columns of equal length; texts and names are indices. Call it when all moments are over."""
        rest = [[*held[:3], n_moments, None] for held in self._live.values()]
        rest = [held for held in rest if held[2] < n_moments]
        seen = self._most_telling(self._seen + rest)
        texts: dict[Any, Any] = {}
        columns = {
            "offset": [held[0].offset for held in seen],
            "n_bytes": [held[0].n_bytes for held in seen],
            "first": [held[2] for held in seen],
            "after": [held[3] for held in seen],
            "t": [held[0].t for held in seen],
            "end": [held[4] for held in seen],
            "band": {
                kind: [one.index(held[0]) for held in seen]
                for kind, one in bands.items()
                if isinstance(one, Bands)
            },
        }
        for name in ("tag", "scope", "site", "thread"):
            columns[name] = [_index(texts, getattr(held[0], name)) for held in seen]
        columns["what"] = [_index(texts, _what(held[0])) for held in seen]
        rest = {"n_left_out": self._n_left_out, "highest": self._highest}
        return {**columns, "texts": list(texts), **rest}

    def _most_telling(self, seen):
        if len(seen) <= MAX_BLOCKS:
            return seen
        order = sorted(seen, key=lambda held: (held[0] not in self._kept, -held[0].n_bytes))
        self._n_left_out += len(order) - MAX_BLOCKS
        return order[:MAX_BLOCKS]


def _what(block):
    return f"{block.dtype} ({', '.join(map(str, block.shape))})"[:200]


def _index(texts, text):
    return texts.setdefault(text, len(texts))


def _duration(seconds):
    for unit, size in _UNITS:
        if seconds >= 0.999 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds / _UNITS[-1][1]:g} {_UNITS[-1][0]}"
