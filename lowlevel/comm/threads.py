"""Ranks of one process: a thread each, which wait for one another, and end together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .comm import RankError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Meeting:
    """Where the ranks of one process hand one another small values, and learn that one of them has failed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._given: list[Any] = [None] * size
        self._result: list[Any] = []
        self._n_given = self._round = 0
        self._failed: tuple[int, BaseException] | None = None

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """All ranks' values in their order, once all have come.

        Raises
        ------
        RankError
            One has failed: either all of a meeting get its values, or none.
        """
        with self._changed:
            self.refuse()
            this_round = self._round
            self._given[rank] = value
            self._n_given += 1
            if self._n_given == self.size:
                self._result, self._given = self._given, [None] * self.size
                self._n_given = 0
                self._round += 1
                self._changed.notify_all()
            while self._round == this_round:
                self.refuse()
                self._changed.wait()
            return list(self._result)  # nobody comes to the next round's end before this rank does

    def fail(self, rank: int, error: BaseException) -> None:
        """Let all who wait, and who come, end with the first error."""
        with self._changed:
            self._failed = self._failed or (rank, error)
            self._changed.notify_all()

    def mend(self) -> None:
        """Forget a failure, when no rank is under way."""
        with self._changed:
            self._failed = None
            self._given, self._n_given = [None] * self.size, 0

    def refuse(self) -> None:
        """Raise RankError where a rank has failed."""
        if self._failed is not None:
            rank, error = self._failed
            raise RankError(rank, f"{type(error).__name__}: {error}") from error


class RankThreads:
    """A thread for each rank of a `local_group`, for as long as they have something to do.

    Parameters
    ----------
    comms : sequence of Comm
        All ranks of one group.
    """

    def __init__(self, comms: Sequence[Any]) -> None:
        self.comms = list(comms)
        self._meeting: Meeting = self.comms[0].meeting
        self._tasks: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in self.comms]
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(rank,), name=f"rank {rank}", daemon=True)
            for rank in range(len(self.comms))
        ]
        for thread in self._threads:
            thread.start()

    def run(self, call: Callable[[Any], Any]) -> list[Any]:
        """``call(comm)`` of every rank at once; what each gave, in their order.

        Raises
        ------
        BaseException
            The error of the rank that failed first; all have ended by then.
        KeyboardInterrupt
            Ranks end where they next meet.
        """
        for tasks in self._tasks:
            tasks.put(call)
        results: list[Any] = [None] * len(self.comms)
        errors: dict[int, BaseException] = {}
        left, interrupt = len(self.comms), None
        while left:
            try:
                rank, result, error = self._done.get()
            except KeyboardInterrupt as caught:
                interrupt = caught
                self._meeting.fail(0, caught)
                continue
            left -= 1
            results[rank] = result
            if error is not None:
                errors[rank] = error
        if interrupt is not None or errors:
            self._meeting.mend()
        if interrupt is not None:
            raise interrupt
        if errors:
            # Those who were only told of it come last.
            raise min(errors.items(), key=lambda item: (isinstance(item[1], RankError), item[0]))[1]
        return results

    def close(self) -> None:
        """End the threads."""
        for tasks in self._tasks:
            tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> RankThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self, rank):
        while (call := self._tasks[rank].get()) is not None:
            result, error = None, None
            try:
                result = call(self.comms[rank])
            except BaseException as caught:
                error = caught
                self._meeting.fail(rank, caught)
            self._done.put((rank, result, error))
            del call, result, error  # nothing of the last call is held while the thread waits
