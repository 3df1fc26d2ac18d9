"""Launches kept to be made again: what a call decided once, without its checks and its arithmetic.

While a thread is `keeping`, every launch of a kernel notes a function that makes it once more, over the same memory. Calls
whose launches depend on values (which experts, how many keys) cannot be kept.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_of_thread = threading.local()


@contextlib.contextmanager
def keeping() -> Iterator[list[Any]]:
    """Gives the list to which launches of this thread are noted, in order, as they run."""
    launches: list[Callable[[], Any]] = []
    outer = getattr(_of_thread, "launches", None)
    _of_thread.launches = launches
    try:
        yield launches
    finally:
        _of_thread.launches = outer


def launch(again: Callable[[], Any]) -> None:
    """Run `again`, which launches a kernel, and note it where somebody is keeping."""
    again()
    launches = getattr(_of_thread, "launches", None)
    if launches is not None:
        launches.append(again)
