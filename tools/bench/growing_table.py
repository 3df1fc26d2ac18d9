"""A Markdown table whose rows appear as they are finished: as wide as its widest cell may be, from the beginning."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class Column(NamedTuple):
    """Heading, the text of a row's cell, how wide it gets at most, and its side."""

    heading: str
    cell: Callable[[Any], str]
    width: int = 0
    justify: Any = "right"


class GrowingTable:
    """Printed row by row.

    Parameters
    ----------
    columns : sequence of Column
    say : callable, optional
        Where lines go; None: to standard output.
    """

    def __init__(
        self, columns: Sequence[Column], say: Callable[[str], object] | None = None
    ) -> None:
        self._columns = columns
        self._say = say or (lambda text: print(text, flush=True))
        self._has_heading = False

    def add(self, row: Any) -> None:
        """Print one more row; before the first, the headings."""
        table = Table(box=box.MARKDOWN, show_header=not self._has_heading)
        for column in self._columns:
            width = max(column.width, len(column.heading))
            table.add_column(column.heading, justify=column.justify, min_width=width, no_wrap=True)
        table.add_row(*(column.cell(row) for column in self._columns))
        self._has_heading = True
        # wider than any terminal, so that rich cuts nothing; without its blank edges
        text = io.StringIO()
        Console(file=text, width=1000).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        self._say("\n".join(line for line in lines if line))
