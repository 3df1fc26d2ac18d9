"""What the actions of ``kqcap pool`` share: choosing pools, names and sizes for the terminal, option types."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..options import UsageError, positive

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any

    from lowlevel.inspect.run import Run
    from lowlevel.inspect.state import PoolState


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", type=positive, metavar="N", help="only the N-th pool of the file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def pools_of(run: Run, number: int | None) -> list[PoolState]:
    return list(chosen(run.pools, number, "the file").values())


def chosen(pools: dict[int, Any], number: int | None, where: str) -> dict[int, Any]:
    if number is None:
        return pools
    if number not in pools:
        numbers = ", ".join(map(str, pools)) or "none"
        raise UsageError(f"--pool {number}: {where} has {numbers}")
    return {number: pools[number]}


def print_run(run: Run, **document: Any) -> int:
    from ..tables import print_json

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


def note_header(run: Run, path: str | os.PathLike[str]) -> None:
    from ..tables import note

    if run.header:
        state = "ended" if run.stopped else "not ended: still written, or killed"
        note(
            f"{shown(path, limit=500)}: {run.n_events:,} events in {run.t:.3f} s, "
            f"process {run.header.get('pid')!r:.20}, {state}"
        )


def columns_of(headings: Iterable[str]) -> list[tuple[str, ...]]:
    return [(heading, "right" if i else "left") for i, heading in enumerate(headings)]


def n_of(n: int, total: int) -> str:
    return f"{n:,} of {total:,}" if total else "-"


def exact(n_bytes: int) -> str:
    from lowlevel.pool.budget_error import exact_size

    return exact_size(n_bytes)


def shown(text: Any, *, markup: bool = False, limit: int = 60) -> str:
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


def size_option(text: str) -> int:
    from lowlevel.sizes import parse_size

    try:
        return parse_size(text, "size")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size_list(text: str) -> list[int]:
    return [size_option(part) for part in text.split(",")]
