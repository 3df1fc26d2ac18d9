"""Bars for tokens that pass and bytes that are loaded: done, all, speed, on standard error where that is a terminal;
only once it takes long."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.progress import Task

# Seconds without a bar: what is over by then needs none.
PATIENCE = 1.0


class _SpeedColumn(ProgressColumn):
    """How many a second so far."""

    def __init__(self, unit: str, scale: float) -> None:
        super().__init__()
        self._unit, self._scale = unit, scale

    def render(self, task: Task) -> Text:
        speed = task.fields["speed"]
        return Text(
            f"- {self._unit}" if speed is None else f"{speed / self._scale:.1f} {self._unit}"
        )


def token_bar(description: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Yields what `Model.prefill` takes as `progress`: a callable told the tokens done, and all.

    Where less is done than before, another run has begun.
    """
    return _bar(description, MofNCompleteColumn(), _SpeedColumn("t/s", 1.0))


def byte_bar(description: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """The same for `quant.load`: bytes that are copied, in GB/s."""
    return _bar(description, DownloadColumn(), _SpeedColumn("GB/s", 1e9))


@contextlib.contextmanager
def _bar(
    description: str, n_done_column: ProgressColumn, speed_column: ProgressColumn
) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        n_done_column,
        speed_column,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not console.is_terminal,
    )
    task = bar.add_task(description, total=None, speed=None)
    late = threading.Timer(PATIENCE, bar.start)
    late.daemon = True
    begun = told = time.monotonic()
    n_done = 0

    def progress(done: int, total: int) -> None:
        nonlocal begun, told, n_done
        if done <= n_done:
            begun = told
        told, n_done = time.monotonic(), done
        speed = done / (told - begun) if told > begun else None
        bar.update(task, completed=done, total=total, speed=speed)

    late.start()
    try:
        yield progress
    finally:
        late.cancel()
        late.join()  # it may be starting the bar just now
        bar.stop()
