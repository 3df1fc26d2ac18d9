"""A recorded run against another budget or another allocator policy: would it have fit? No memory is taken.

    requests = read_requests("run.jsonl")[1]
    result = replay(requests, budget=128 * 2**20)
    result.fits, result.failure, smallest_budget(requests)

The requests come in the order in which they came, each block lives as long as it lived. What a program would have
done after a refusal, or with a request that was refused then, no trace can say: the first refusal is what counts,
and the rest is replayed without that block.
"""

import dataclasses

from lowlevel.pool.arena import ALIGNMENT
from lowlevel.pool.policies import POLICIES
from lowlevel.sizes import parse_size

from .run import read_run

TAKE, GIVE, REFUSED = range(3)
MAX_BUDGET = 2**62


@dataclasses.dataclass
class Requests:
    """What was asked of one pool, in order.

    Attributes
    ----------
    pool : int
    device : str
    budget, peak : int
        Bytes; the peak is the least that any allocator needs.
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
    steps: list = dataclasses.field(default_factory=list)
    sizes: list = dataclasses.field(default_factory=list)
    tags: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)
    refused: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Replayed:
    """How a replay ended.

    Attributes
    ----------
    budget : int
    policy : str
    fits : bool
        Nothing was refused that was granted when it was recorded.
    n_refused : int
        Requests that were granted then and are refused here.
    failure : dict or None
        The first of them: t, size, tag, used, largest_free, fragmented.
    peak : int
        Bytes taken at most, the policy's rounding included.
    end : int
        The highest address in use at any time: what lies above was never needed.
    n_refused_then, n_granted_now : int
        Requests that were refused when it was recorded, and how many of them would find room here.
    """

    budget: int
    policy: str
    fits: bool = True
    n_refused: int = 0
    failure: dict | None = None
    peak: int = 0
    end: int = 0
    n_refused_then: int = 0
    n_granted_now: int = 0

    def to_dict(self):
        return dataclasses.asdict(self)


def read_requests(path):
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
    recorders = {}

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
        recorder.requests.peak = run.pools[number].peak
    return {number: recorder.requests for number, recorder in recorders.items()}


def replay(requests, budget=None, policy="best-fit"):
    """Run the requests against an empty arena.

    Parameters
    ----------
    requests : Requests
    budget : int or str, optional
        None: as recorded.
    policy : str
        One of `lowlevel.pool.policies.POLICIES`; "best-fit" is what pools do.

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


def smallest_budget(requests, policy="best-fit"):
    """The smallest budget found under which everything fits; each try is a replay, so the answer is proven.

    (More room does not always help an allocator, so a smaller one may work too where this is above the peak.)

    Returns
    -------
    int
        Bytes.
    """
    low = requests.peak
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


def _fits(requests, budget, policy):
    result = Replayed(budget, policy)
    _run(requests, result, stop_at_failure=True)
    return result.fits


def _run(requests, result, stop_at_failure):
    arena = POLICIES[result.policy](result.budget // ALIGNMENT * ALIGNMENT)
    offset_of = {}
    for kind, index in requests.steps:
        if kind == GIVE:
            offset = offset_of.pop(index, None)
            if offset is not None:
                arena.give(offset, _rounded(requests.sizes[index]))
        elif kind == TAKE:
            n_bytes = _rounded(requests.sizes[index])
            if not n_bytes:
                continue
            offset = arena.take(n_bytes)
            if offset is None:
                _refuse(requests, result, arena, index, n_bytes)
                if stop_at_failure:
                    return
                continue
            offset_of[index] = offset
            result.peak = max(result.peak, arena.used)
            result.end = max(result.end, offset + n_bytes)
        elif not stop_at_failure:
            n_bytes = _rounded(requests.refused[index]["size"])
            result.n_granted_now += n_bytes <= arena.largest_free


def _rounded(n_bytes):
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _refuse(requests, result, arena, index, n_bytes):
    result.fits = False
    result.n_refused += 1
    if result.failure is None:
        result.failure = {
            "t": requests.times[index],
            "size": n_bytes,
            "tag": requests.tags[index],
            "used": arena.used,
            "largest_free": arena.largest_free,
            "fragmented": n_bytes <= arena.size - arena.used,
        }
