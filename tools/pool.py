"""``kqcap pool``: what a pool's trace (or snapshot) says, checks, replays and pictures of it."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys

from .options import UsageError, positive

DESCRIPTION = """\
Look into memory pools: FILE is a trace (lowlevel.trace; it may still be written) or, where no
history is needed, the JSON of Pool.snapshot()."""

EPILOG = """\
examples:
  kqcap pool stats run.jsonl
  kqcap pool check run.jsonl --max 256MiB --no-refusals --plan
  kqcap pool replay run.jsonl --budget 128MiB,256MiB --policy best-fit,buddy
  kqcap pool timeline run.jsonl -o run.html -o run.png
  kqcap pool export run.jsonl --format torch -o run.pickle
exit codes: 0 held, 1 a checked limit was broken, 2 bad use"""

SHOWN_TAGS = 20
MAP_ROWS = 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "pool",
        help="look into a pool's trace: stats, map, timeline, top, diff, replay, check, export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for name, (help_text, add_options, _) in _ACTIONS.items():
        action = actions.add_parser(name, help=help_text, description=f"{help_text}.")
        action.add_argument("file", metavar="FILE", help="a trace, or a snapshot's JSON")
        add_options(action)


def run(args):
    return _ACTIONS[args.action][2](args)


# ---------------------------------------------------------------- stats


def _stats(args):
    from lowlevel.trace_state import read_run

    run = read_run(args.file)
    pools = _pools(run, args.pool)
    if args.json:
        return _json(run, pools=[pool.to_dict() for pool in pools])
    _note_header(run, args.file)
    for pool in pools:
        _print_pool(pool)
    return 0


def _print_pool(pool):
    from .tables import note, print_table

    data = pool.to_dict()
    note(
        f"pool {pool.number} on {shown(pool.device)}: budget {_size(pool.budget)}, "
        f"peak {_size(pool.peak)} at {pool.peak_t:.6f} s, used at the end {_size(pool.used)}, "
        f"largest free block {_size(data['largest_free'])}, "
        f"fragmentation {data['fragmentation']:.0%} (at the peak {data['peak_fragmentation']:.0%})"
    )
    if pool.earlier_peak > pool.peak:
        note(f"before its recording began the pool had reached {_size(pool.earlier_peak)}")
    at_peak = {holder["tag"]: holder["n_bytes"] for holder in data["holders_at_peak"]}
    columns = ["tag", "at the peak", "share", "at most", "now", "live", "taken"]
    rows = [
        [
            shown(tag, markup=True),
            f"{at_peak.get(tag, 0):,}",
            f"{at_peak.get(tag, 0) / pool.peak:.1%}" if pool.peak else "-",
            f"{totals['peak']:,}",
            f"{totals['used']:,}",
            f"{totals['n_live']:,}",
            "-" if pool.from_snapshot else f"{totals['n_taken']:,}",
        ]
        for tag, totals in sorted(
            data["tags"].items(), key=lambda item: -at_peak.get(item[0], item[1]["peak"] / 1e20)
        )
    ]
    print_table(_columns(columns), rows[:SHOWN_TAGS])
    if len(rows) > SHOWN_TAGS:
        note(f"and {len(rows) - SHOWN_TAGS} tag(s) more (--json has them)")
    if data["calls"]:
        columns = ["call", "calls", "failed", "mean ms", "scratch at most", "as planned"]
        print_table(
            _columns(columns),
            [
                [
                    shown(name, markup=True),
                    f"{totals['n']:,}",
                    f"{totals['n_failed']:,}",
                    f"{totals['seconds'] / totals['n'] * 1e3:.3f}",
                    f"{totals['peak']:,}",
                    _of(totals["n_planned"] - totals["n_off_plan"], totals["n_planned"]),
                ]
                for name, totals in data["calls"].items()
            ],
        )
    for refused in data["refused"][:1]:
        note(
            f"{pool.n_refused} request(s) refused, the first at {refused['t']:.6f} s: "
            f"{_size(refused['size'])} for {shown(refused['tag'])}, {_size(refused['used'])} used"
        )


# ---------------------------------------------------------------- map


def _add_map_options(parser):
    _add_common(parser)
    parser.add_argument(
        "--at",
        metavar="WHEN",
        default=None,
        help="peak, end, or seconds since the trace began (default: peak)",
    )
    parser.add_argument("--width", type=positive, metavar="N", help="characters in a row")
    parser.add_argument("--rows", type=positive, default=MAP_ROWS, metavar="N")
    parser.add_argument("--whole", action="store_true", help="show free space above the last block")


def _map(args):
    from lowlevel.trace_state import read_run

    when = args.at or "peak"
    run = read_run(args.file, until=_moment(when))
    pools = _pools(run, args.pool)
    if args.json:
        blocks = [
            {
                "pool": pool.number,
                "arena": pool.arena_bytes,
                "blocks": [block.to_dict() for block in _blocks_at(pool, when)],
            }
            for pool in pools
        ]
        return _json(run, at=when, pools=blocks)
    for pool in pools:
        _print_map(args, pool, _blocks_at(pool, when), when)
    return 0


def _moment(when):
    """Seconds to stop at, or None."""
    if when in ("peak", "end"):
        return None
    try:
        seconds = float(when)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(f"--at: peak, end or seconds of at least 0; got {when!r}")
    return seconds


def _blocks_at(pool, when):
    return pool.at_peak() if when == "peak" else pool.blocks()


def _print_map(args, pool, blocks, when):
    from rich.console import Console
    from rich.text import Text

    from lowlevel.arena import Arena
    from lowlevel.block_map import block_map

    from .tables import note

    width = args.width or max(16, min(128, shutil.get_terminal_size().columns - 16))
    size = pool.arena_bytes if args.whole else None
    picture = block_map(blocks, width * args.rows, size)
    arena = Arena(pool.arena_bytes, [(block.offset, block.n_bytes) for block in blocks])
    moment = {"peak": f"the peak ({pool.peak_t:.6f} s)", "end": "the end"}.get(when, f"{when} s")
    note(
        f"pool {pool.number} on {shown(pool.device)} at {moment}: {_size(arena.used)} of "
        f"{_size(pool.budget)} in {len(blocks)} block(s), largest hole {_size(arena.largest_free)}; "
        f"a character is {_size(picture.cell_bytes)}"
    )
    letters = {tag: LETTERS[i % len(LETTERS)] for i, tag in enumerate(picture.tags)}
    styles = {tag: STYLES[i % len(STYLES)] for i, tag in enumerate(picture.tags)}
    console = Console(file=sys.stdout, width=width + 20)
    for start in range(0, len(picture.cells), width):
        line = Text(f"{start * picture.cell_bytes:>14,} ")
        for tag, _ in picture.cells[start : start + width]:
            line.append(letters.get(tag, "."), styles.get(tag, "dim"))
        console.print(line, soft_wrap=True)
    for tag in picture.tags[:SHOWN_TAGS]:
        n_bytes = sum(block.n_bytes for block in blocks if block.tag == tag)
        note(f"  {letters[tag]} {shown(tag)}: {_size(n_bytes)}")
    if not args.whole:
        note(f"  above the last block: {_size(pool.arena_bytes - picture.end)} free")


# ---------------------------------------------------------------- timeline, top, export


def _add_timeline_options(parser):
    _add_outputs(parser, "the picture, .html or .png (default: FILE.html); may be given twice")
    parser.add_argument("--json", action="store_true", help="print the picture's data instead")


def _timeline(args):
    from lowlevel import timeline

    data = timeline.timeline(args.file)
    if args.json:
        from .tables import print_json

        print_json(data)
        return 0
    makers = {".html": timeline.html, ".png": timeline.png}
    outputs = args.output or [f"{args.file}.html"]
    for out in outputs:
        if pathlib.Path(out).suffix not in makers:
            raise UsageError(f"-o: a name that ends in .html or .png; got {out!r}")
        _check_output(out, args)
    for out in outputs:
        _write_output(out, makers[pathlib.Path(out).suffix](data))
    return 0


def _add_top_options(parser):
    parser.add_argument("--json", action="store_true", help="print one state as JSON and end")
    parser.add_argument("--once", action="store_true", help="print one state and end")
    parser.add_argument(
        "--interval", type=_seconds, default=0.5, metavar="S", help="seconds (default: 0.5)"
    )


def _top(args):
    from . import pool_top

    return pool_top.run(args)


def _add_export_options(parser):
    parser.add_argument(
        "--format",
        choices=("torch", "rmm"),
        required=True,
        help="torch: a pickle for pytorch.org/memory_viz; rmm: RMM's CSV log",
    )
    _add_outputs(parser, "(default: FILE.pickle or FILE.csv)")


def _export(args):
    from lowlevel.trace_export import export

    suffix = {"torch": "pickle", "rmm": "csv"}[args.format]
    if args.output and len(args.output) > 1:
        raise UsageError("-o: give one file")
    (out,) = args.output or [f"{args.file}.{suffix}"]
    _check_output(out, args)
    _write_output(out, export(args.file, args.format))
    return 0


def _add_outputs(parser, help_text):
    parser.add_argument("-o", "--output", metavar="OUT", action="append", help=help_text)
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")


def _check_output(out, args):
    path = pathlib.Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"-o {out}: name a file in a folder that exists")
    if path.exists() and path.samefile(args.file):
        raise UsageError(f"-o {out}: is the file that is read")
    if path.exists() and not args.force:
        raise UsageError(f"-o {out}: exists; --force replaces it")


def _write_output(out, data):
    """Whole or not at all, and nowhere else."""
    import tempfile

    from .tables import note

    path = pathlib.Path(out)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, path)
    finally:
        pathlib.Path(unfinished).unlink(missing_ok=True)
    note(f"{shown(out, limit=500)}: {len(data):,} bytes")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------- diff, replay, check


def _add_diff_options(parser):
    parser.add_argument("other", metavar="FILE2", help="what FILE is compared with")
    parser.add_argument(
        "--max-growth",
        type=_size_option,
        metavar="SIZE",
        help="exit code 1 if a pool's peak in FILE2 is above that in FILE by more",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _diff(args):
    from lowlevel.trace_check import diff
    from lowlevel.trace_state import read_run

    from .tables import note, print_json, print_table

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
            _columns(["", "A", "B", "B - A", "B / A"]), [_difference_row(*row) for row in rows]
        )
    if broken:
        note(f"BROKEN: the peak grew by {growth} bytes, more than {args.max_growth}")
    return int(broken)


def _growth(values):
    return (values[1] or 0) - (values[0] or 0)


def _difference_row(name, a, b):
    if a is None or b is None:
        return [name, *("-" if value is None else f"{value:,}" for value in (a, b)), "-", "-"]
    return [name, f"{a:,}", f"{b:,}", f"{b - a:+,}", f"{b / a:.3f}" if a else "-"]


def _add_replay_options(parser):
    from lowlevel.policies import POLICIES

    _add_common(parser)
    parser.add_argument(
        "--budget", type=_size_list, metavar="SIZE", help="comma list (default: as recorded)"
    )
    parser.add_argument(
        "--policy",
        type=_policy_list,
        default=["best-fit"],
        metavar="NAME",
        help=f"comma list of {', '.join(POLICIES)} (default: best-fit, what pools do)",
    )
    parser.add_argument(
        "--smallest", action="store_true", help="also find the smallest budget that works"
    )


def _replay(args):
    from lowlevel.replay import read_requests, replay, smallest_budget

    from .tables import print_json, print_table

    results = []
    for number, requests in _chosen(read_requests(args.file), args.pool, args.file).items():
        for policy in args.policy:
            smallest = smallest_budget(requests, policy) if args.smallest else None
            for budget in args.budget or [requests.budget]:
                result = replay(requests, budget, policy).to_dict()
                results.append(
                    {"pool": number, "recorded_peak": requests.peak, **result, "smallest": smallest}
                )
    if args.json:
        print_json({"file": args.file, "replays": results})
    else:
        columns = ["pool", "policy", "budget", "fits", "refused", "peak", "first refusal"]
        columns += ["smallest that works"] if args.smallest else []
        print_table(_columns(columns), [_replay_row(args, result) for result in results])
    return int(not all(result["fits"] for result in results))


def _replay_row(args, result):
    failure = result["failure"]
    first = "-"
    if failure:
        why = "fragmented" if failure["fragmented"] else f"{_size(failure['used'])} used"
        first = (
            f"{failure['t']:.6f} s: {_size(failure['size'])} for "
            f"{shown(failure['tag'], markup=True)}, {why}"
        )
    row = [str(result["pool"]), result["policy"], _size(result["budget"])]
    row += [
        "yes" if result["fits"] else "NO",
        str(result["n_refused"]),
        _size(result["peak"]),
        first,
    ]
    return row + ([_size(result["smallest"])] if args.smallest else [])


def _add_check_options(parser):
    parser.add_argument(
        "--max",
        type=_size_option,
        metavar="SIZE",
        help="the pools of a device never took more together",
    )
    parser.add_argument("--no-refusals", action="store_true", help="no request was refused")
    parser.add_argument("--no-leaks", action="store_true", help="nothing is live at the end")
    parser.add_argument(
        "--plan", action="store_true", help="every call took what it had planned, to the byte"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _check(args):
    from lowlevel.trace_check import check
    from lowlevel.trace_state import read_run

    from .tables import note, print_json

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
    peaks = {device: level.peak for device, level in run.devices.items()}
    if args.json:
        print_json({"file": args.file, "held": not broken, "peaks": peaks, "broken": broken})
    else:
        for one in broken:
            note(f"BROKEN: {one['what']}")
        if not broken:
            held = ", ".join(f"{shown(device)} {_size(peak)}" for device, peak in peaks.items())
            note(f"held; peak: {held or 'no pools'}")
    return int(bool(broken))


# ---------------------------------------------------------------- what they share


def _add_common(parser):
    parser.add_argument("--pool", type=positive, metavar="N", help="only the N-th pool of the file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _pools(run, number):
    return list(_chosen(run.pools, number, "the file").values())


def _chosen(pools, number, where):
    if number is None:
        return pools
    if number not in pools:
        numbers = ", ".join(map(str, pools)) or "none"
        raise UsageError(f"--pool {number}: {where} has {numbers}")
    return {number: pools[number]}


def _json(run, **document):
    from .tables import print_json

    print_json(
        {
            "trace": run.header or None,
            "seconds": run.t,
            "n_events": run.n_events,
            "stopped": run.stopped,
            **document,
        }
    )
    return 0


def _note_header(run, path):
    from .tables import note

    if run.header:
        state = "ended" if run.stopped else "not ended: still written, or killed"
        note(
            f"{shown(path, limit=500)}: {run.n_events:,} events in {run.t:.3f} s, "
            f"process {run.header.get('pid')!r:.20}, {state}"
        )


def _columns(headings):
    return [(heading, "right" if i else "left") for i, heading in enumerate(headings)]


def _of(n, total):
    return f"{n:,} of {total:,}" if total else "-"


def _size(n_bytes):
    from lowlevel.budget_error import exact_size

    return exact_size(n_bytes)


def shown(text, *, markup=False, limit=60):
    """A name out of a file for the terminal: printable, of bounded length, no commands to it.

    With `markup`, for a cell of `print_table`, which reads rich's markup.
    """
    from rich.markup import escape

    text = text if len(text) <= limit else text[: limit - 3] + "..."
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    text = text or "''"
    return escape(text) if markup else text


def _size_option(text):
    from lowlevel.sizes import parse_size

    try:
        return parse_size(text, "size")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size_list(text):
    return [_size_option(part) for part in text.split(",")]


def _policy_list(text):
    from lowlevel.policies import POLICIES

    policies = text.split(",")
    for policy in policies:
        if policy not in POLICIES:
            raise argparse.ArgumentTypeError(f"{policy!r} is not one of {', '.join(POLICIES)}")
    return policies


def _seconds(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0.01 to 3600")
    return seconds


# action: help, options, what runs
_ACTIONS = {
    "stats": ("peak, holders by tag, calls, refusals", _add_common, _stats),
    "map": ("which tag holds what lies where in the arena", _add_map_options, _map),
    "timeline": ("memory over time as one offline HTML file, or PNG", _add_timeline_options, _timeline),
    "top": ("live view of a process that is writing its trace", _add_top_options, _top),
    "diff": ("what FILE2 takes more or less than FILE", _add_diff_options, _diff),
    "replay": ("would it have fit another budget or allocator policy", _add_replay_options, _replay),
    "check": ("limits for CI: exit code 1 where one is broken", _add_check_options, _check),
    "export": ("for PyTorch's memory viewer, or as RMM's log", _add_export_options, _export),
}  # fmt: skip
