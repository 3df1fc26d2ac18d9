"""``kqcap pool stats`` and ``map``: what a pool holds, by tag and by place."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from ..options import UsageError, positive
from .common import add_common, columns_of, exact, n_of, note_header, pools_of, print_run, shown

if TYPE_CHECKING:
    import argparse


SHOWN_TAGS = 20
SHOWN_NAME, SHOWN_LINE = 60, 100  # characters; the innermost of a line's callers stands first
MAP_ROWS = 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")


def run_stats(args: argparse.Namespace) -> int:
    from lowlevel.inspect.run import read_run

    run = read_run(args.file)
    pools = pools_of(run, args.pool)
    if args.json:
        return print_run(run, pools=[pool.to_dict() for pool in pools])
    note_header(run, args.file)
    for pool in pools:
        _print_pool(run, pool)
    return 0


def _print_pool(run, pool):
    from ..tables import note, print_table

    data = pool.to_dict()
    note(
        f"pool {pool.number} on {shown(pool.device)}: budget {exact(pool.budget)}, "
        f"peak {exact(pool.peak)}{_when(pool, ' at {:.6f} s')}, used at the end {exact(pool.used)}, "
        f"largest free block {exact(data['largest_free'])}, "
        f"fragmentation {data['fragmentation']:.0%} (at the peak {data['peak_fragmentation']:.0%})"
    )
    if pool.earlier_peak > pool.peak:
        note(f"before its recording began the pool had reached {exact(pool.earlier_peak)}")
    for heading, field, totals in (
        ("tag", "tag", data["tags"]),
        ("scope", "scope", data["scopes"]),
        ("source line", "site", data["sites"]),
    ):
        if field == "tag" or any(totals):  # blocks without a scope or (but in debug mode) a line
            _print_totals(pool, heading, field, totals)
    if data["calls"]:
        columns = ["call", "calls", "failed", "mean ms", "scratch at most", "as planned"]
        print_table(
            columns_of(columns),
            [
                [
                    shown(name, markup=True),
                    f"{totals['n']:,}",
                    f"{totals['n_failed']:,}",
                    f"{totals['seconds'] / totals['n'] * 1e3:.3f}",
                    f"{totals['peak']:,}",
                    n_of(totals["n_planned"] - totals["n_off_plan"], totals["n_planned"]),
                ]
                for name, totals in data["calls"].items()
            ],
        )
    _print_left(run, pool, data["left"])
    for refused in data["refused"][:1]:
        note(
            f"{pool.n_refused} request(s) refused, the first at {refused['t']:.6f} s: "
            f"{exact(refused['size'])} for {shown(refused['tag'])}, {exact(refused['used'])} used"
        )


def _print_totals(pool, heading, field, all_totals):
    """Bytes by tag, scope or source line."""
    at_peak: dict[str, int] = {}
    for block in pool.at_peak():
        name = getattr(block, field)
        at_peak[name] = at_peak.get(name, 0) + block.n_bytes
    columns = [heading, "at the peak", "share", "at most", "now", "live", "taken"]
    rows = [
        [
            _name(field, name),
            f"{at_peak.get(name, 0):,}",
            f"{at_peak.get(name, 0) / pool.peak:.1%}" if pool.peak else "-",
            f"{totals['peak']:,}",
            f"{totals['used']:,}",
            f"{totals['n_live']:,}",
            "-" if pool.from_snapshot else f"{totals['n_taken']:,}",
        ]
        for name, totals in sorted(
            all_totals.items(), key=lambda item: -at_peak.get(item[0], item[1]["peak"] / 1e20)
        )
    ]
    _print_first(columns_of(columns), rows, f"{heading}(s)")


def _print_left(run, pool, left):
    """What was never freed; of a trace that goes on, what is live."""
    from ..tables import note

    if not left:
        return
    ended = run.stopped or not pool.attached
    note(
        f"{'never freed' if ended else 'live now'}: {len(pool.live):,} block(s), {exact(pool.used)}"
    )
    early = "-" if pool.from_snapshot else "before the recording"
    columns = [("tag", "left"), ("scope", "left"), ("taken at", "left")]
    columns += [("blocks", "right"), ("bytes", "right"), ("since", "right")]
    rows = [
        [
            *(_name(field, group[field]) for field in ("tag", "scope", "site")),
            f"{group['n_blocks']:,}",
            f"{group['n_bytes']:,}",
            early if group["since"] is None else f"{group['since']:.6f} s",
        ]
        for group in left
    ]
    _print_first(columns, rows, "group(s)")


def _print_first(columns, rows, what):
    from ..tables import note, print_table

    print_table(columns, rows[:SHOWN_TAGS])
    if len(rows) > SHOWN_TAGS:
        note(f"and {len(rows) - SHOWN_TAGS} {what} more (--json has them)")


def _name(field, name):
    if field != "tag" and not name:
        return "-"
    return shown(name, markup=True, limit=SHOWN_LINE if field == "site" else SHOWN_NAME)


def _when(pool, form):
    """The moment of the peak in words, where it is known: a snapshot has no times."""
    return "" if pool.peak_t is None else form.format(pool.peak_t)


def add_map_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "--at",
        metavar="WHEN",
        default=None,
        help="peak, end, or seconds since the trace began (default: peak)",
    )
    parser.add_argument("--width", type=positive, metavar="N", help="characters in a row")
    parser.add_argument("--rows", type=positive, default=MAP_ROWS, metavar="N")
    parser.add_argument("--whole", action="store_true", help="show free space above the last block")


def run_map(args: argparse.Namespace) -> int:
    from lowlevel.inspect.run import read_run

    from ..tables import note

    when = args.at or "peak"
    run = read_run(args.file, until=_moment(when))
    pools = pools_of(run, args.pool)
    if when not in ("peak", "end") and any(pool.from_snapshot for pool in pools):
        raise UsageError(f"--at {when}: a snapshot has no times, only its peak and its end")
    if args.json:
        blocks = [
            {
                "pool": pool.number,
                "arena": pool.arena_bytes,
                "blocks": [block.to_dict() for block in _blocks_at(pool, when)],
            }
            for pool in pools
        ]
        return print_run(run, at=when, pools=blocks)
    for pool in pools:
        _print_map(args, pool, _blocks_at(pool, when), when)
    if not pools:
        note(f"no pool was recorded by then ({when})")
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

    from lowlevel.inspect.block_map import block_map
    from lowlevel.pool.arena import Arena

    from ..tables import note

    width = args.width or max(16, min(128, shutil.get_terminal_size().columns - 16))
    size = pool.arena_bytes if args.whole else None
    picture = block_map(blocks, width * args.rows, size)
    arena = Arena(pool.arena_bytes, [(block.offset, block.n_bytes) for block in blocks])
    moment = {"peak": f"the peak{_when(pool, ' ({:.6f} s)')}", "end": "the end"}.get(
        when, f"{when} s"
    )
    note(
        f"pool {pool.number} on {shown(pool.device)} at {moment}: {exact(arena.used)} of "
        f"{exact(pool.budget)} in {len(blocks)} block(s), largest hole {exact(arena.largest_free)}; "
        f"a character is {exact(picture.cell_bytes)}"
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
        note(f"  {letters[tag]} {shown(tag)}: {exact(n_bytes)}")
    if not args.whole:
        note(f"  above the last block: {exact(pool.arena_bytes - picture.end)} free")
