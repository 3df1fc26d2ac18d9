"""What can be demanded of a run (a limit on memory, no refusals, ...), and how two runs differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel.pool.block import holders

if TYPE_CHECKING:
    from typing import Any

    from lowlevel.inspect.run import Run


TOTALS = ("budget", "peak", "used")
HISTORY = ("n_taken", "n_refused")  # no snapshot says


def check(
    run: Run,
    *,
    limit: int | None = None,
    no_refusals: bool = False,
    no_leaks: bool = False,
    kept_plans: bool = False,
) -> list[dict[str, Any]]:
    """What of the given demands a run breaks.

    Parameters
    ----------
    run : lowlevel.inspect.run.Run
    limit : int, optional
        Bytes that the pools of one device may take together at any moment.
    no_refusals : bool
        No request was refused.
    no_leaks : bool
        Nothing is live at the end.
    kept_plans : bool
        Every whole call that named its planned scratch took just that, to the byte.

    Returns
    -------
    list of dict
        check, what (a sentence), and the numbers it is about; empty: all held.
    """
    broken = []
    for device, level in run.devices.items() if limit is not None else ():
        if level.peak > limit:
            what = (
                f"{device} took {level.peak} bytes, {level.peak - limit} over the limit of {limit}"
            )
            over = {"device": device, "peak": level.peak, "limit": limit}
            broken.append({"check": "max", "what": what, **over})
    for pool in run.pools.values():
        name = f"pool {pool.number} ({pool.device})"
        if no_refusals and pool.n_refused:
            first = pool.refused[0]
            what = (
                f"{name} refused {pool.n_refused} request(s), the first of {first['size']} bytes "
                f"for {first['tag']!r:.60} at {first['t']:.6f} s"
            )
            refused = {"pool": pool.number, "n_refused": pool.n_refused}
            broken.append({"check": "no-refusals", "what": what, **refused})
        if no_leaks and pool.live:
            held = ", ".join(map(_holder, holders(pool.live.values())[:5]))
            what = f"{name} holds {len(pool.live)} block(s), {pool.used} bytes, at the end: {held}"
            left = {"pool": pool.number, "n_live": len(pool.live), "used": pool.used}
            broken.append({"check": "no-leaks", "what": what, **left})
        if kept_plans and pool.off_plan:
            first = pool.off_plan[0]
            n_off = sum(totals.n_off_plan for totals in pool.calls.values())
            what = (
                f"{name}: {n_off} call(s) did not take what was planned, the first {first.name!r:.60} at "
                f"{first.begin:.6f} s: {first.peak} bytes, planned {first.planned}"
            )
            broken.append({"check": "plan", "what": what, "pool": pool.number, "n_off_plan": n_off})
    return broken


def _holder(holder):
    site = f" (taken at {holder['sites'][0]:.100})" if holder["sites"] else ""
    return f"{holder['tag']!r:.60}{site}"


def diff(run_a: Run, run_b: Run) -> list[dict[str, Any]]:
    """How two runs differ, pool by pool in the order of attaching.

    Returns
    -------
    list of dict
        One for each pair: a, b (pool numbers, None where one has fewer pools), totals and tags, each a dict of
        name to (value in a, value in b); tags: bytes at most.
    """
    pools_a, pools_b = list(run_a.pools.values()), list(run_b.pools.values())
    n = max(len(pools_a), len(pools_b))
    pools_a += [None] * (n - len(pools_a))
    pools_b += [None] * (n - len(pools_b))
    return [_diff(a, b) for a, b in zip(pools_a, pools_b, strict=True)]


def _diff(a, b):
    totals = {name: tuple(_total(pool, name) for pool in (a, b)) for name in TOTALS + HISTORY}
    by_tag = [pool.tags if pool else {} for pool in (a, b)]
    tags = {
        tag: tuple(tags[tag].peak if tag in tags else 0 for tags in by_tag)
        for tag in by_tag[0] | by_tag[1]
    }
    order = sorted(tags, key=lambda tag: (-abs(tags[tag][1] - tags[tag][0]), -max(tags[tag]), tag))
    return {
        "a": a and a.number,
        "b": b and b.number,
        "totals": totals,
        "tags": {tag: tags[tag] for tag in order},
    }


def _total(pool, name):
    if pool is None or (name in HISTORY and pool.from_snapshot):
        return None
    return getattr(pool, name)
