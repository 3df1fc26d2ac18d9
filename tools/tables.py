"""Tables and progress bars: Markdown tables on standard output, as llama-bench prints, through rich."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any


__all__ = [
    "mib",
    "note",
    "note_what_cannot_run",
    "paused",
    "print_json",
    "print_sweep",
    "print_table",
    "progress",
    "terminal_width",
    "tile",
]

MIB = 2**20
# Where there is no terminal to fit: wide enough that rich cuts no cell.
WIDTH = 1000
_BORDER = 3  # characters of a column beside its cells


def print_table(
    columns: Sequence[tuple[str, ...]], rows: Iterable[Sequence[str]], n_keys: int = 1
) -> None:
    """Print a Markdown table, as wide as the terminal at most.

    Where it would be wider, what all rows have in common goes to a line above, and the other columns
    are folded into several tables, one below the other, that all begin with those that tell the rows
    apart.

    Parameters
    ----------
    columns : list of (str, str)
        Heading and justification ("left" or "right") of each column.
    rows : iterable of sequences of str
    n_keys : int
        So many columns at the beginning tell the rows apart.
    """
    columns, rows = list(columns), [tuple(row) for row in rows]
    width = terminal_width()
    sizes = [
        max(map(_cell_len, (heading, *(row[i] for row in rows))))
        for i, (heading, _) in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    if _total(sizes, shown) > width and len(rows) > 1:
        common = [i for i in shown if len({row[i] for row in rows}) == 1]
        shown = [i for i in shown if i not in common]
        n_keys -= sum(i < n_keys for i in common)
        if common:
            text = ", ".join(f"{columns[i][0]} {_plain(rows[0][i])}" for i in common)
            note(f"in all rows: {text}")
    for part in _folded(sizes, shown, n_keys, width):
        _print_part([columns[i] for i in part], [[row[i] for i in part] for row in rows], width)


def terminal_width() -> int:
    """Characters of a line: COLUMNS where it is set, else the terminal's; without one, no bound."""
    try:
        return max(20, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    try:
        return max(20, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (AttributeError, OSError, ValueError):  # a pipe, a file, or what a program put there
        return WIDTH


def _folded(sizes, shown, n_keys, width):
    """The columns of each table: `shown`, in as many tables as it takes."""
    if _total(sizes, shown) <= width:
        return [shown]
    keys, rest = shown[:n_keys], shown[n_keys:]
    parts: list[list[int]] = []
    for i in rest:
        if not parts or (_total(sizes, [*parts[-1], i]) > width and len(parts[-1]) > len(keys)):
            parts.append(list(keys))
        parts[-1].append(i)
    return parts or [shown]


def _total(sizes, shown):
    return sum(sizes[i] + _BORDER for i in shown) + 1


def _cell_len(cell):
    from rich.text import Text

    return Text.from_markup(cell).cell_len


def _plain(cell):
    from rich.text import Text

    return Text.from_markup(cell).plain


def _print_part(columns, rows, width):
    table = Table(box=box.MARKDOWN, show_edge=True)
    for heading, justify in columns:
        if justify == "left":
            table.add_column(heading, justify=justify, overflow="fold")
        else:
            table.add_column(heading, justify=justify, no_wrap=True, min_width=len(heading))
    for row in rows:
        table.add_row(*row)
    console = _console(width)
    with console.capture() as capture:
        console.print(table, crop=False, soft_wrap=width == WIDTH)
    lines = capture.get().splitlines()
    print(
        "\n".join(line for line in lines if line.strip())
    )  # rich draws blank edges around Markdown


def print_sweep(
    title: str,
    rows: list[dict[str, Any]],
    parameters: Sequence[tuple[str, ...]],
    columns: Sequence[tuple[str, ...]],
    cells: Callable[..., Any],
    n_keys: int = 1,
) -> None:
    """Print the rows of a sweep: what all have in common in a line above, what differs as columns.

    Parameters
    ----------
    title : str
    rows : list of dict
    parameters : list of (str, str)
        Key in a row, and heading.
    columns : list of (str, str)
        As in `print_table`.
    cells : callable
        row -> its cells in `columns`.
    n_keys : int
        As in `print_table`, of `columns`.
    """
    varied = [(key, heading) for key, heading in parameters if len({row[key] for row in rows}) > 1]
    common = [
        f"{heading} {rows[0][key]}" for key, heading in parameters if (key, heading) not in varied
    ]
    note("; ".join(filter(None, [title, ", ".join(common)])))
    print_table(
        [*((heading, "right") for _, heading in varied), *columns],
        [[*(str(row[key]) for key, _ in varied), *cells(row)] for row in rows],
        len(varied) + n_keys,
    )


def note(text: str) -> None:
    """Print a line of plain text beside a table."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def note_what_cannot_run(failed: Sequence[tuple[Any, str]]) -> None:
    """Print one line for all rows of a sweep that cannot run.

    Parameters
    ----------
    failed : list of (int, str)
        Bytes that a row needs, and the whole message.
    """
    if not failed:
        return
    n_bytes, reason = max(failed)
    if len(failed) > 1:
        reason = (
            f"{len(failed)} rows need a larger -amb (each says its own), at most {mib(n_bytes)} MiB, "
            f"which is: {reason}"
        )
    note(f"cannot run: {reason}")


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def progress() -> Any:
    """A progress bar on standard error; it shows nothing unless that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # what is printed meanwhile goes where it was sent, not beside the bar
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def paused(progress: Any) -> Iterator[None]:
    """No bar while something is printed."""
    progress.stop()
    try:
        yield
    finally:
        progress.start()


def mib(n_bytes: float, digits: int = 2) -> str:
    """Bytes as MiB for a table cell; None is "-"."""
    return "-" if n_bytes is None else f"{n_bytes / MIB:.{digits}f}"


def tile(plan: dict[str, Any]) -> str:
    """The tile of a plan: heads x rows x keys."""
    return f"{plan['heads']} x {plan['rows']} x {plan['keys']}"


def _console(width=WIDTH):
    # made at each use: standard output may be replaced meanwhile (tests, redirect_stdout)
    return Console(file=sys.stdout, width=width)
