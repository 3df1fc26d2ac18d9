"""A bar for tokens that pass: done, all, t/s, on standard error where that is a terminal; only once it takes long."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

# Seconds without a bar: what is over by then needs none.
PATIENCE = 1.0


class SpeedColumn(ProgressColumn):
    """Tokens a second so far."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0.0
        speed = task.completed / seconds if seconds > 0 and task.completed else None
        return Text("- t/s" if speed is None else f"{speed:.1f} t/s")


@contextlib.contextmanager
def token_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what `Model.prefill` takes as `progress`: a callable told the tokens done, and all."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not console.is_terminal,
    )
    task = bar.add_task(description, total=None)
    late = threading.Timer(PATIENCE, bar.start)
    late.daemon = True
    late.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        late.cancel()
        late.join()  # it may be starting the bar just now
        bar.stop()
