"""``kqcap pool``: what a pool's trace (or snapshot) says, checks, replays and pictures of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_common
from .judge import (
    add_check_options,
    add_diff_options,
    add_replay_options,
    run_check,
    run_diff,
    run_replay,
)
from .output import add_export_options, add_timeline_options, run_export, run_timeline
from .top import add_top_options, run_top
from .view import add_map_options, run_map, run_stats

if TYPE_CHECKING:
    from typing import Any


DESCRIPTION = """\
Look into memory pools: FILE is a trace (lowlevel.Trace; it may still be written) or, where no
history is needed, the JSON of Pool.snapshot()."""

EPILOG = """\
examples:
  kqcap pool stats run.jsonl
  kqcap pool check run.jsonl --max 256MiB --no-refusals --plan
  kqcap pool replay run.jsonl --budget 128MiB,256MiB --policy best-fit,buddy
  kqcap pool timeline run.jsonl -o run.html -o run.png
  kqcap pool export run.jsonl --format torch -o run.pickle
exit codes: 0 held, 1 a checked limit was broken, 2 bad use"""

# action: help, options, what runs
_ACTIONS = {
    "stats": ("peak, holders by tag, calls, refusals", add_common, run_stats),
    "map": ("which tag holds what lies where in the arena", add_map_options, run_map),
    "timeline": ("memory over time as one offline HTML file, or PNG", add_timeline_options, run_timeline),
    "top": ("live view of a process that is writing its trace", add_top_options, run_top),
    "diff": ("what FILE2 takes more or less than FILE", add_diff_options, run_diff),
    "replay": ("would it have fit another budget or allocator policy", add_replay_options, run_replay),
    "check": ("limits for CI: exit code 1 where one is broken", add_check_options, run_check),
    "export": ("for PyTorch's memory viewer, or as RMM's log", add_export_options, run_export),
}  # fmt: skip


def add_parser(subparsers: Any) -> None:
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


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action][2](args)
