"""How launches run, where a call does not say."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .protocol import MAX_RUNNERS, ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Settings:
    """Defaults of every launch; the environment's CUDASIM_ORDER and so on set them at import.

    Attributes
    ----------
    order : {"fifo", "reverse", "random", "lifo"}
        In which order threads and blocks run. Memory is guarded at the end in "fifo" and "random",
        at the start in "reverse" and "lifo".
    seed : int
        Of the order "random".
    race, ub : bool
        Compile with the access log (finds races and unwritten reads, with lines; about 10 times
        slower, one core) or with the checks of undefined behaviour.
    strict : bool
        A ``__syncthreads`` after some thread of the block has returned is an error.
    hang_seconds : int
        Computing time without progress after which a kernel is given up.
    workers : int
        Processes over which blocks are spread.
    """

    order: str = "fifo"
    seed: int = 0
    race: bool = False
    ub: bool = False
    strict: bool = True
    hang_seconds: int = 20
    workers: int = 1

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order: one of {', '.join(ORDERS)}; got {self.order!r}")
        if not 1 <= self.workers <= MAX_RUNNERS:
            raise ValueError(f"workers: 1 to {MAX_RUNNERS}; got {self.workers!r}")
        if self.hang_seconds < 1:
            raise ValueError(f"hang_seconds: at least 1; got {self.hang_seconds!r}")


def _from_environment():
    environment = os.environ.get
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Settings(
        order=environment("CUDASIM_ORDER", "fifo"),
        seed=int(environment("CUDASIM_SEED", "0")),
        race=environment("CUDASIM_RACE", "0") == "1",
        ub=environment("CUDASIM_UB", "0") == "1",
        hang_seconds=int(environment("CUDASIM_HANG_SECONDS", "20")),
        workers=int(environment("CUDASIM_WORKERS", min(n_cores or 1, MAX_RUNNERS))),
    )


_current = _from_environment()


def current_settings(**changes: Any) -> Settings:
    """The settings in force, with those of `changes` that are not None put in their place."""
    return replace(
        _current, **{name: value for name, value in changes.items() if value is not None}
    )


@contextlib.contextmanager
def settings(**changes: Any) -> Iterator[Settings]:
    """Within this context all launches of the process run with `changes`, see `Settings`."""
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield _current
    finally:
        _current = before
