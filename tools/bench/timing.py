"""The timer of every bench: seconds of calls on the host or a device, and what is made of them.

What is compared runs in rounds, one after the other, so that what else happens on a machine hits all alike; ratios are
taken round by round.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Fewer runs have no spread worth the name.
SPREAD_RUNS = 3
# What keeps a GPU busy for a millisecond: longer than the host takes to queue a call.
_BUSY_BYTES, _BUSY_TIMES = 1 << 29, 8


def is_gpu(device_name: str) -> bool:
    return device_name.startswith("cuda:")


def seconds_of(call: Callable[[], Any], device_name: str = "cpu") -> float:
    """Seconds that a GPU takes for one call; on the CPU and the simulator the host's."""
    if not is_gpu(device_name):
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3


def median_of_calls(call: Callable[[], Any], count: int) -> float:
    """Seconds of one of `count` calls on the host: the median, lest one that the system interrupted counts for all."""
    times = [time.perf_counter()]
    for _ in range(count):
        call()
        times.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device_name: str = "cpu"
) -> dict[str, list[float]]:
    """{name: seconds of each round} of {name: call}, after one call each that is not counted."""
    return _interleaved(calls, rounds, lambda call: seconds_of(call, device_name))


def queued(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device_name: str
) -> dict[str, list[float]]:
    """As `interleaved`; a GPU is busy with something else until a call is queued, so that the host's
    share of the call is not in its time."""
    if not is_gpu(device_name):
        return interleaved(calls, rounds, device_name)
    import cupy

    other = cupy.empty(_BUSY_BYTES, "uint8")

    def behind_other_work(call):
        stream = cupy.cuda.get_current_stream().ptr
        for _ in range(_BUSY_TIMES):
            cupy.cuda.runtime.memsetAsync(other.data.ptr, 0, other.nbytes, stream)
        return seconds_of(call, device_name)

    return _interleaved(calls, rounds, behind_other_work)


def _interleaved(calls, rounds, timed):
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    return times


# ---------------------------------------------------------------- what is made of times


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any] | None:
    """Their seconds over ours, round by round: median, least, most, n_rounds; None where there is no round of both."""
    # an interrupted round has some of them only, and one who died has fewer
    each = [a / b for a, b in zip(theirs, ours, strict=False)]
    if not each:
        return None
    return dict(median=statistics.median(each), least=min(each), most=max(each), n_rounds=len(each))


def ratio_text(found: dict[str, Any] | None) -> str:
    """A table's cell: the median, and from three rounds on the least and most."""
    if found is None:
        return "-"
    digits = 0 if found["median"] >= 20 else 2
    median, least, most = (f"{found[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} ({least}-{most})" if found["n_rounds"] >= SPREAD_RUNS else median


def half_range(speeds: Sequence[float]) -> float | None:
    """Half of what the runs' speeds differ by, from three runs on."""
    return (max(speeds) - min(speeds)) / 2 if len(speeds) >= SPREAD_RUNS else None


def speed_text(median: float, spread: float | None) -> str:
    """A table's cell: the median speed ± `half_range`."""
    return f"{median:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
