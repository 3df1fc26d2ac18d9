"""``kqcap pool diff``, ``replay`` and ``check``: what differs, what would have fit, what was demanded."""

from __future__ import annotations

import argparse

from ..options import UsageError
from .common import add_common, chosen, columns_of, exact, shown, size_list, size_option

SHOWN_TAGS = 20


def add_diff_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("other", metavar="FILE2", help="what FILE is compared with")
    parser.add_argument(
        "--max-growth",
        type=size_option,
        metavar="SIZE",
        help="exit code 1 if a pool's peak in FILE2 is above that in FILE by more",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run_diff(args: argparse.Namespace) -> int:
    from lowlevel.inspect.check import diff
    from lowlevel.inspect.run import read_run

    from ..tables import note, print_json, print_table

    pairs = diff(read_run(args.file), read_run(args.other))
    growth = max((_growth(pair["totals"]["peak"]) for pair in pairs), default=0)
    broken = args.max_growth is not None and growth > args.max_growth
    if args.json:
        print_json(
            {"a": args.file, "b": args.other, "growth": growth, "broken": broken, "pools": pairs}
        )
        return int(broken)
    for pair in pairs:
        note(f"pool {pair['a'] or '-'} against pool {pair['b'] or '-'}, bytes")
        rows = [(name, *values) for name, values in pair["totals"].items()]
        rows += [
            (f"tag {shown(tag, markup=True)}, at most", *values)
            for tag, values in list(pair["tags"].items())[:SHOWN_TAGS]
        ]
        print_table(
            columns_of(["", "A", "B", "B - A", "B / A"]), [_difference_row(*row) for row in rows]
        )
    for index, name in enumerate(("FILE", "FILE2")):
        if any(pair["totals"]["n_refused"][index] for pair in pairs):
            note(f"{name} had refusals: its peak is what it got, not what it asked for")
    if broken:
        note(f"BROKEN: the peak grew by {growth} bytes, more than {args.max_growth}")
    return int(broken)


def _growth(values):
    return (values[1] or 0) - (values[0] or 0)


def _difference_row(name, a, b):
    if a is None or b is None:
        return [name, *("-" if value is None else f"{value:,}" for value in (a, b)), "-", "-"]
    return [name, f"{a:,}", f"{b:,}", f"{b - a:+,}", f"{b / a:.3f}" if a else "-"]


def add_replay_options(parser: argparse.ArgumentParser) -> None:
    from lowlevel.pool.policies import POLICIES

    add_common(parser)
    parser.add_argument(
        "--budget", type=size_list, metavar="SIZE", help="comma list (default: as recorded)"
    )
    parser.add_argument(
        "--policy",
        type=policy_list,
        default=["best-fit"],
        metavar="NAME",
        help=f"comma list of {', '.join(POLICIES)} (default: best-fit, what pools do)",
    )
    parser.add_argument(
        "--smallest", action="store_true", help="also find the smallest budget that works"
    )


def run_replay(args: argparse.Namespace) -> int:
    from lowlevel.inspect.replay import read_requests, replay, smallest_budget

    from ..tables import note, print_json, print_table

    results, notes = [], []
    for number, requests in chosen(read_requests(args.file), args.pool, args.file).items():
        unknown = _unknown(number, requests)
        notes += [unknown["what"]] if unknown else []
        for policy in args.policy:
            smallest = smallest_budget(requests, policy) if args.smallest else None
            for budget in args.budget or [requests.budget]:
                result = replay(requests, budget, policy).to_dict()
                results.append(
                    {
                        "pool": number,
                        "recorded_peak": requests.peak,
                        "demand": requests.demand,
                        **result,
                        "smallest": smallest,
                        "unknown": unknown,
                    }
                )
    if args.json:
        print_json({"file": args.file, "replays": results})
    else:
        columns = ["pool", "policy", "budget", "fits", "refused", "peak", "first refusal"]
        columns += ["smallest that works"] if args.smallest else []
        print_table(columns_of(columns), [_replay_row(args, result) for result in results])
        for text in notes:
            note(text)
    return int(not all(result["fits"] for result in results))


def _unknown(number, requests):
    """What a trace with refusals cannot say, and from when on; None where nothing was refused."""
    if not requests.refused:
        return None
    first, n_after = requests.refused[0], requests.n_after_refusal
    then = (
        f"{n_after:,} block(s) were taken by a program that had been refused"
        if n_after
        else "the program took nothing more"
    )
    what = (
        f"pool {number}: {len(requests.refused):,} request(s) were refused when this was recorded, the first at "
        f"{first['t']:.6f} s, after which {then}. What it would have asked for had it been granted, the "
        f"trace cannot say: answers hold up to there"
    )
    return {"since": first["t"], "n_taken_after": n_after, "what": what}


def _replay_row(args, result):
    failure = result["failure"]
    first = "-"
    if failure:
        why = "fragmented" if failure["fragmented"] else f"{exact(failure['used'])} used"
        first = (
            f"{failure['t']:.6f} s: {exact(failure['size'])} for "
            f"{shown(failure['tag'], markup=True)}, {why}"
        )
    row = [str(result["pool"]), result["policy"], exact(result["budget"])]
    row += [
        _fits(result),
        str(result["n_refused"]),
        exact(result["peak"]),
        first,
    ]
    return row + ([exact(result["smallest"])] if args.smallest else [])


def _fits(result):
    if not result["fits"]:
        return "NO"
    return "yes" if result["known_until"] is None else f"yes, to {result['known_until']:.6f} s"


def add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max",
        type=size_option,
        metavar="SIZE",
        help="the pools of a device never took more together",
    )
    parser.add_argument("--no-refusals", action="store_true", help="no request was refused")
    parser.add_argument("--no-leaks", action="store_true", help="nothing is live at the end")
    parser.add_argument(
        "--plan", action="store_true", help="every call took what it had planned, to the byte"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_check(args: argparse.Namespace) -> int:
    from lowlevel.inspect.check import check
    from lowlevel.inspect.run import read_run

    from ..tables import note, print_json

    if args.max is None and not (args.no_refusals or args.no_leaks or args.plan):
        raise UsageError("name what to check: --max SIZE, --no-refusals, --no-leaks, --plan")
    run = read_run(args.file)
    broken = check(
        run,
        limit=args.max,
        no_refusals=args.no_refusals,
        no_leaks=args.no_leaks,
        kept_plans=args.plan,
    )
    if not run.pools:
        raise UsageError(f"{args.file}: no pool was recorded, so there is nothing to check")
    peaks = {device: level.peak for device, level in run.devices.items()}
    whole = run.stopped or not run.header  # a snapshot is
    n_refused = sum(pool.n_refused for pool in run.pools.values())
    totals = [calls for pool in run.pools.values() for calls in pool.calls.values()]
    n_planned = sum(calls.n_planned for calls in totals)
    if args.plan and not n_planned:
        raise UsageError(f"--plan: no call in {args.file} says what it planned")
    if args.json:
        document = {"file": args.file, "held": not broken, "whole": whole, "peaks": peaks}
        document.update(n_planned_calls=n_planned, n_refused=n_refused, broken=broken)
        print_json(document)
    else:
        for one in broken:
            note(f"BROKEN: {one['what']}")
        if not broken:
            held = ", ".join(f"{shown(device)} {exact(peak)}" for device, peak in peaks.items())
            note(f"held; peak: {held}")
        if n_refused and not args.no_refusals:
            note(
                f"{n_refused:,} request(s) were refused: the peak is what was got, not what was asked for"
            )
        if args.plan:
            note(f"{n_planned:,} call(s) had a plan")
        if not whole:
            note("so far: the trace was not ended (still written, or the process was killed)")
    return int(bool(broken))


def policy_list(text: str) -> list[str]:
    from lowlevel.pool.policies import POLICIES

    policies = text.split(",")
    for policy in policies:
        if policy not in POLICIES:
            raise argparse.ArgumentTypeError(f"{policy!r} is not one of {', '.join(POLICIES)}")
    return policies
