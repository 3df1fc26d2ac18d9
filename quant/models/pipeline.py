"""U-batches through the parts of a model: each part works on one while the part before it works on the next.

At every step each part is given the u-batch that the part before it was given a step earlier. Devices with queues are
given theirs first and work on while the host goes on. Where the host itself has work in several parts of a step (layers
or experts on the CPU, logits that are waited for), all but one of these run in threads, and the step ends with them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lowlevel.sure_start import start_thread

if TYPE_CHECKING:
    import numpy as np

    from .segment import Segment


class UBatch(NamedTuple):
    """What `Segment.run` is told of one."""

    ids: np.ndarray
    n_kv: int
    n_outputs: int
    logits: np.ndarray
    number: int


def run_pipeline(
    segments: Sequence[Segment],
    batches: Sequence[UBatch],
    clock: dict[str, float] | None = None,
) -> Iterator[UBatch]:
    """Run them all; yields each when the last part has been given it.

    Parameters
    ----------
    segments : sequence of Segment
    batches : sequence of UBatch
    clock : dict, optional
        See `Segment.run`; with it, one part at a time works.
    """
    n = len(segments)
    if n == 1:
        for batch in batches:
            segments[0].run(*batch, clock)
            yield batch
        return
    for step in range(len(batches) + n - 1):
        jobs = [
            (segments[k], batches[step - k])
            for k in reversed(range(n))  # who waits for rows has been given them a step ago
            if 0 <= step - k < len(batches)
        ]
        _run_step(jobs, clock)
        if step >= n - 1:
            yield batches[step - n + 1]


def _run_step(jobs, clock):
    calls = []
    for segment, batch in jobs:
        call = functools.partial(segment.run, *batch, clock)
        if _waits(segment, batch):
            calls.append(call)
        else:
            call()
    if clock is None:
        run_together(calls)
    else:
        for call in calls:
            call()


def _waits(segment, batch):
    """Whether the host has to wait or to work itself for a u-batch of a part."""
    gives_logits = segment.config.has_output and batch.n_outputs > 0
    return segment.waits_on_host or gives_logits


def run_together(calls: Sequence[Callable[[], Any]]) -> None:
    """Run all, the first on this thread; what one of them raises is raised when all have ended.

    An interrupt waits for the others too: they work in memory that whoever called may give back.
    """
    if not calls:
        return
    errors: list[BaseException] = []

    def guarded(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls[1:]]
    interrupted = None
    started = []
    try:
        for thread in threads:
            start_thread(thread)
            started.append(thread)
        calls[0]()
    except BaseException as error:
        interrupted = error
    for thread in started:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
    if errors:
        raise errors[0]
