"""Weights from the mapped file to devices: chunk by chunk through pinned memory, which pages are read into once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.pool.arena import align_up

from .crossing import N_SLOTS, PinnedSlots

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowlevel.devices import Device

# What is copied at once: long enough for a bus's full speed, little beside any model.
CHUNK = 16 * 2**20


def chunk_bytes(total: int) -> int:
    """Of one chunk, where `total` bytes are to be copied."""
    return align_up(min(CHUNK, total))


def loading_bytes(total: int) -> int:
    """Pinned memory that loading takes."""
    return N_SLOTS * chunk_bytes(total)


class Loading:
    """Copies to devices, and how far they are.

    Parameters
    ----------
    total : int
        Bytes that there are to copy, each array rounded up as pools do.
    memory : numpy.ndarray of uint8, (loading_bytes(total),)
        Pinned.
    progress : callable or None
        Called with the bytes that are done, and `total`.
    """

    def __init__(
        self, total: int, memory: np.ndarray, progress: Callable[[int, int], None] | None
    ) -> None:
        self._total, self._memory, self._progress = total, memory, progress
        self._done = self._number = 0

    def to(self, device: Device) -> Callable[[Any, np.ndarray], None]:
        """What copies an array to one of that device of its shape and dtype, without gaps.

        It queues the last chunks; whoever uses the next device waits for this one before.
        """
        slots = PinnedSlots(device, (chunk_bytes(self._total),), "uint8")
        slots.take(self._memory)

        def upload(target, array):
            self._upload(slots, target.reshape(-1).view("uint8"), array)

        return upload

    def _upload(self, slots, target, array):
        source = array.reshape(-1).view(np.uint8)
        step = chunk_bytes(self._total)
        before = self._done
        for at in range(0, len(source), step):
            part = source[at : at + step]
            slots.write(target[at : at + step], self._number, lambda out, x=part: np.copyto(out, x))
            self._number += 1
            self._tell(before + at + len(part))
        self._tell(before + align_up(len(source)))

    def _tell(self, done):
        self._done = done
        if self._progress is not None:
            self._progress(min(done, self._total), self._total)
