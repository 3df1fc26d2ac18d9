"""Tables and progress bars: Markdown tables on standard output, as llama-bench prints, through rich."""

from __future__ import annotations

import json
import sys

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["mib", "note", "print_json", "print_sweep", "print_table", "progress", "tile"]

MIB = 2**20
# Wide enough that rich cuts no cell: a narrow terminal wraps lines by itself.
WIDTH = 1000


def print_table(columns, rows):
    """Print a Markdown table.

    Parameters
    ----------
    columns : list of (str, str)
        Heading and justification ("left" or "right") of each column.
    rows : iterable of sequences of str
    """
    table = Table(box=box.MARKDOWN, show_edge=True)
    for heading, justify in columns:
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = _console()
    with console.capture() as capture:
        console.print(table, crop=False, soft_wrap=True)
    lines = capture.get().splitlines()
    print(
        "\n".join(line for line in lines if line.strip())
    )  # rich draws blank edges around Markdown


def print_sweep(title, rows, parameters, columns, cells):
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
    """
    varied = [(key, heading) for key, heading in parameters if len({row[key] for row in rows}) > 1]
    common = [
        f"{heading} {rows[0][key]}" for key, heading in parameters if (key, heading) not in varied
    ]
    note("; ".join(filter(None, [title, ", ".join(common)])))
    print_table(
        [*((heading, "right") for _, heading in varied), *columns],
        [[*(str(row[key]) for key, _ in varied), *cells(row)] for row in rows],
    )


def note(text):
    """Print a line of plain text beside a table."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document):
    print(json.dumps(document, indent=2))


def progress():
    """A progress bar on standard error; it shows nothing unless that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def mib(n_bytes, digits=2):
    """Bytes as MiB for a table cell; None is "-"."""
    return "-" if n_bytes is None else f"{n_bytes / MIB:.{digits}f}"


def tile(plan):
    """The tile of a plan: heads x rows x keys."""
    return f"{plan['heads']} x {plan['rows']} x {plan['keys']}"


def _console():
    # made at each use: standard output may be replaced meanwhile (tests, redirect_stdout)
    return Console(file=sys.stdout, width=WIDTH)
