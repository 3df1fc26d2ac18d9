"""``kqcap pool top``: what a process that is writing its trace holds right now."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


ROWS = 15
BAR_WIDTH = 60


def add_top_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one state as JSON and end")
    parser.add_argument("--once", action="store_true", help="print one state and end")
    parser.add_argument(
        "--interval", type=seconds_option, default=0.5, metavar="S", help="seconds (default: 0.5)"
    )


def seconds_option(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0.01 to 3600")
    return seconds


def run_top(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from lowlevel.inspect.run import LiveRun

    from ..tables import print_json

    with LiveRun(args.file) as state:
        state.update()
        if args.json:
            print_json(
                {
                    "trace": state.header or None,
                    "seconds": state.t,
                    "stopped": state.stopped,
                    "alive": _is_alive(state),
                    "pools": [pool.to_dict() for pool in state.pools.values()],
                }
            )
            return 0
        console = Console(file=sys.stdout)
        if args.once or not console.is_terminal:
            console.print(_view(state))
            return 0
        with Live(_view(state), console=console, auto_refresh=False) as live:
            while not state.stopped and _is_alive(state):
                time.sleep(args.interval)
                state.update()
                live.update(_view(state), refresh=True)
    return 0


def _is_alive(state):
    """Whether the process that writes the trace still runs, as far as one can tell."""
    pid = state.header.get("pid")
    if state.stopped or type(pid) is not int or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _view(state):
    from rich.console import Group
    from rich.text import Text

    status = "ended" if state.stopped else "running" if _is_alive(state) else "gone"
    pid = f"{state.header.get('pid')!r:.20}"
    lines = [Text(f"process {pid}, {status}, {state.t:.3f} s, {state.n_events:,} events")]
    for pool in state.pools.values():
        lines += _pool_view(pool)
    return Group(*lines)


def _pool_view(pool):
    from rich.table import Table
    from rich.text import Text

    from lowlevel.sizes import format_size

    from .common import shown

    yield Text(
        f"\npool {pool.number} on {shown(pool.device)}: {format_size(pool.used)} of "
        f"{format_size(pool.budget)}, peak {format_size(pool.peak)}, "
        f"fragmentation {pool.fragmentation:.0%}, {len(pool.live):,} blocks, {pool.n_refused:,} refused"
    )
    n_full = round(BAR_WIDTH * pool.used / max(pool.budget, 1))
    yield Text.assemble(("━" * n_full, "cyan"), ("─" * (BAR_WIDTH - n_full), "bright_black"))
    table = Table(box=None, pad_edge=False)
    for heading, justify in (
        ("tag", "left"),
        ("now", "right"),
        ("at most", "right"),
        ("blocks", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=justify == "right", overflow="fold")
    tags = sorted(pool.tags.items(), key=lambda item: (-item[1].used, -item[1].peak, item[0]))
    for tag, totals in tags[:ROWS]:
        sizes = (format_size(totals.used), format_size(totals.peak), str(totals.n_live))
        table.add_row(shown(tag, markup=True), *sizes)
    yield table
    for call in list(pool.open_calls.values())[:ROWS]:
        yield Text(f"in {shown(call.name)} ({shown(call.thread)}): {format_size(call.used)} taken")
    for name, totals in list(pool.calls.items())[:ROWS]:
        mean = totals.seconds / totals.n * 1e3
        yield Text(f"{shown(name)}: {totals.n:,} calls, {mean:.3f} ms on average")
