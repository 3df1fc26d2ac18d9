"""A recorded run against another budget or another allocator policy: would it have fit? No memory is taken.

    requests = read_requests("run.jsonl")[1]
    result = replay(requests, budget=128 * 2**20)
    result.fits, result.failure, smallest_budget(requests)

The requests come in the order in which they came, each block lives as long as it lived. A request that was refused
when it was recorded is one as well: to fit, it needs room at its moment. How long its block would have lived no trace
can say, so it is given back at once.

Nor can a trace say what a program would have done after a request that ended otherwise than it did then (often the
program ended there): `Replayed.known_until` is that moment. What comes after it is replayed as it was recorded,
without the blocks that are refused here.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lowlevel.pool.arena import ALIGNMENT
from lowlevel.pool.policies import POLICIES
from lowlevel.sizes import parse_size

from .run import read_run

if TYPE_CHECKING:
    import os
    from typing import Any


TAKE, GIVE, REFUSED = range(3)
MAX_BUDGET = 2**62
RECORDED_POLICY = "best-fit"  # what pools do


@dataclasses.dataclass
class Requests:
    """What was asked of one pool, in order.

    Attributes
    ----------
    pool : int
    device : str
    budget, peak : int
        Bytes, as recorded.
    demand : int
        Bytes that any allocator needs at least: the peak, or what was live at a refusal with what was refused.
    steps : list of (int, int)
        (TAKE or GIVE, index of the block), or (REFUSED, index in `refused`).
    sizes, tags, times : list
        Of each block: bytes, tag, seconds.
    refused : list of dict
        t, size and tag of the requests that were refused then.
    """

    pool: int
    device: str
    budget: int
    peak: int = 0
    demand: int = 0
    steps: list = dataclasses.field(default_factory=list)
    sizes: list = dataclasses.field(default_factory=list)
    tags: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)
    refused: list = dataclasses.field(default_factory=list)

    @property
    def n_after_refusal(self) -> int | None:
        """Blocks that were taken after the first refusal; None where nothing was refused."""
        kinds = [kind for kind, _ in self.steps]
        return kinds[kinds.index(REFUSED) :].count(TAKE) if self.refused else None

    def request(self, kind: int, index: int) -> dict[str, Any]:
        """t, size and tag of a step that takes or was refused."""
        if kind == REFUSED:
            return self.refused[index]
        return {"t": self.times[index], "size": self.sizes[index], "tag": self.tags[index]}


@dataclasses.dataclass
class Replayed:
    """How a replay ended.

    Attributes
    ----------
    budget : int
    policy : str
    fits : bool
        Nothing that was asked for is refused, what was refused when it was recorded included.
    n_refused : int
        Requests that are refused here.
    failure : dict or None
        The first of them: t, size, tag, used, largest_free, fragmented, refused_then.
    known_until : float or None
        The moment (seconds) of the first request that was granted when it was recorded and is refused here, or the other
        way round: what the program would have asked for from there on no trace can say. None: all ended as it did then.
    peak : int
        Bytes taken at most, the policy's rounding included.
    end : int
        The highest address in use at any time: what lies above was never needed.
    n_refused_then, n_granted_now : int
        Requests that were refused when it was recorded, and how many of them find room here.
    """

    budget: int
    policy: str
    fits: bool = True
    n_refused: int = 0
    failure: dict | None = None
    known_until: float | None = None
    peak: int = 0
    end: int = 0
    n_refused_then: int = 0
    n_granted_now: int = 0

    def to_dict(self) -> Any:
        return dataclasses.asdict(self)


def read_requests(path: str | os.PathLike[str]) -> dict[int, Requests]:
    """The requests of each pool of a trace file.

    Returns
    -------
    dict of int to Requests

    Raises
    ------
    OSError, TraceFormatError
    ValueError
        A snapshot, which has no history, instead of a trace.
    """
    recorders: dict[Any, Any] = {}

    def record(run, event, pool, call):
        if pool is not None:
            recorder = recorders.get(pool.number)
            if recorder is None:
                recorder = recorders[pool.number] = _Recorder(pool)
            recorder.add(event, pool)

    run = read_run(path, record)
    if any(pool.from_snapshot for pool in run.pools.values()):
        raise ValueError(f"{path}: a snapshot; only a trace says what was asked for when")
    for number, recorder in recorders.items():
        requests = recorder.requests
        requests.peak = run.pools[number].peak
        requests.demand = max(requests.demand, requests.peak)
    return {number: recorder.requests for number, recorder in recorders.items()}


def replay(
    requests: Requests, budget: int | None = None, policy: str = RECORDED_POLICY
) -> Replayed:
    """Run the requests against an empty arena.

    Parameters
    ----------
    requests : Requests
    budget : int or str, optional
        None: as recorded.
    policy : str
        One of `lowlevel.pool.policies.POLICIES`.

    Returns
    -------
    Replayed

    Raises
    ------
    TypeError, ValueError
        No such budget or policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy: one of {', '.join(POLICIES)}; got {policy!r}")
    budget = requests.budget if budget is None else parse_size(budget)
    if budget > MAX_BUDGET:
        raise ValueError(f"budget: at most {MAX_BUDGET} bytes; got {budget}")
    result = Replayed(budget, policy, n_refused_then=len(requests.refused))
    _run(requests, result, stop_at_failure=False)
    return result


def smallest_budget(requests: Requests, policy: str = RECORDED_POLICY) -> int:
    """The smallest budget found under which everything fits, what was refused then included; each try is a replay, so
    the answer is proven, up to the first refusal of the recording.

    (More room does not always help an allocator, so a smaller one may work too where this is above the peak.)

    Returns
    -------
    int
        Bytes.
    """
    low = requests.demand
    if _fits(requests, low, policy):
        return low
    high = low + ALIGNMENT
    while not _fits(requests, high, policy):
        low, high = high, 2 * high
    while high - low > ALIGNMENT:
        middle = (low + high) // 2 // ALIGNMENT * ALIGNMENT
        if _fits(requests, middle, policy):
            high = middle
        else:
            low = middle
    return high


class _Recorder:
    """Turns a pool's events into `Requests`."""

    def __init__(self, pool):
        self.requests = Requests(pool.number, pool.device, pool.budget)
        self._index_of = {}  # number of a live block -> its index

    def add(self, event, pool):
        requests = self.requests
        for taken, block in pool.changes:
            if taken:
                self._index_of[block.number] = len(requests.sizes)
                requests.steps.append((TAKE, len(requests.sizes)))
                requests.sizes.append(block.n_bytes)
                requests.tags.append(block.tag)
                requests.times.append(event["t"])
            else:
                requests.steps.append((GIVE, self._index_of.pop(block.number)))
        if event["op"] == "refuse":
            requests.steps.append((REFUSED, len(requests.refused)))
            requests.refused.append({key: event[key] for key in ("t", "size", "tag")})
            requests.demand = max(requests.demand, pool.used + _rounded(event["size"]))


def _fits(requests, budget, policy):
    result = Replayed(budget, policy)
    _run(requests, result, stop_at_failure=True)
    return result.fits


def _run(requests, result, stop_at_failure):
    arena = POLICIES[result.policy](result.budget // ALIGNMENT * ALIGNMENT)
    offset_of: dict[int, int] = {}
    # In the budget of the recording a refusal is a fact, also where holes from before the recording were its cause.
    as_recorded = result.policy == RECORDED_POLICY and arena.size == (
        requests.budget // ALIGNMENT * ALIGNMENT
    )
    for kind, index in requests.steps:
        if kind == GIVE:
            offset = offset_of.pop(index, None)
            if offset is not None:
                arena.give(offset, _rounded(requests.sizes[index]))
            continue
        request = requests.request(kind, index)
        n_bytes = _rounded(request["size"])
        if not n_bytes:
            continue
        offset = None if as_recorded and kind == REFUSED else arena.take(n_bytes)
        if (offset is None) != (kind == REFUSED) and result.known_until is None:
            result.known_until = request["t"]
        if offset is None:
            _refuse(result, arena, request, n_bytes, kind)
            if stop_at_failure:
                return
            continue
        result.peak = max(result.peak, arena.used)
        result.end = max(result.end, offset + n_bytes)
        if kind == REFUSED:
            result.n_granted_now += 1
            arena.give(offset, n_bytes)
        else:
            offset_of[index] = offset


def _rounded(n_bytes):
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _refuse(result, arena, request, n_bytes, kind):
    result.fits = False
    result.n_refused += 1
    if result.failure is None:
        result.failure = {
            "t": request["t"],
            "size": n_bytes,
            "tag": request["tag"],
            "used": arena.used,
            "largest_free": arena.largest_free,
            "fragmented": n_bytes <= arena.size - arena.used,
            "refused_then": kind == REFUSED,
        }
