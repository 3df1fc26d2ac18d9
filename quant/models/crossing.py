"""How the rows of a u-batch get from one part of a pass to the next: from device to device, or to another rank.

A pass over several devices is cut between layers (placement.py). Where it is cut, the residual stream, (n_tokens, n_embd)
of float32, crosses. That is all that parts of a model hand one another, and a `Crossing` is all they know of it:

- it says before anything is taken how many bytes of pinned host memory it needs (`pinned_bytes`), and is given them;
- the part before the cut calls `send`, the part behind it `receive`, once for each u-batch and in the order of u-batches,
  on the stream that is its own. Neither waits for the other's device: copies are queued behind events, so that the first
  part can be given the next u-batch at once. Only a part that works on the host itself (the CPU) waits, for its rows.

`HostCrossing` goes through pinned memory of the host, in two slots: a u-batch is read from one while the next is
written to the other. What goes to another process, or directly between devices, is another class with these methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from lowlevel.pool.arena import align_up
from lowlevel.shapes import array_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from lowlevel.arrays import Array
    from lowlevel.devices import Device, StreamDevice

# U-batches whose rows may be on their way at once.
N_SLOTS = 2


class Crossing(Protocol):
    """What hands rows on; see the module."""

    @property
    def pinned_bytes(self) -> int:
        """Of the host's pinned memory, known before anything is taken."""

    def take(self, memory: np.ndarray) -> None:
        """What it asked for: uint8, (pinned_bytes,), from a multiple of 256 on, for as long as it is used."""

    def send(self, rows: Array, number: int) -> None:
        """Queue rows, (n_tokens, n_embd) of float32 without gaps, of u-batch `number` on their way.

        Called in the sender's stream; `rows` may be written again by what that stream does next.
        """

    def receive(self, rows: Array, number: int) -> None:
        """Have the rows of u-batch `number` written to `rows`, in order with what the current stream does next."""


class _Slots:
    """Arrays of one shape in pinned memory, by turns."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._layout = array_layout(shape, dtype)
        self._slots: list[np.ndarray] = []

    @property
    def pinned_bytes(self) -> int:
        """Of all slots."""
        return N_SLOTS * align_up(self._layout[2])

    def take(self, memory: np.ndarray) -> None:
        """See `Crossing`."""
        shape, dtype, n_bytes = self._layout
        step = align_up(n_bytes)
        self._slots = [
            memory[slot * step : slot * step + n_bytes].view(dtype).reshape(shape)
            for slot in range(N_SLOTS)
        ]


class HostCrossing(_Slots):
    """Through pinned memory of the host, between two devices of this process, one of which may be the CPU.

    Parameters
    ----------
    source, target : Device
        Where rows come from, and go to.
    n_ubatch, n_embd : int
        The most rows, and their width.
    """

    def __init__(self, source: Device, target: Device, n_ubatch: int, n_embd: int) -> None:
        super().__init__((n_ubatch, n_embd), "float32")
        self._source, self._target = source, target
        self._sent: list[Moment | None] = [None] * N_SLOTS
        self._received: list[Moment | None] = [None] * N_SLOTS

    def send(self, rows: Array, number: int) -> None:
        """See `Crossing`."""
        slot = number % N_SLOTS
        wait_for(self._source, self._received[slot])
        self._source.copy_out(rows, self._slots[slot][: len(rows)])
        self._sent[slot] = moment_of(self._source, self._sent[slot])

    def receive(self, rows: Array, number: int) -> None:
        """See `Crossing`."""
        slot = number % N_SLOTS
        wait_for(self._target, self._sent[slot])
        self._target.upload(rows, self._slots[slot][: len(rows)])
        self._received[slot] = moment_of(self._target, self._received[slot])


class Moment(NamedTuple):
    """A point in the order of a device's work."""

    device: StreamDevice
    event: Any


def moment_of(device: Device, known: Moment | None = None) -> Moment | None:
    """After all that the current stream of a device has been given; None: it is done already.

    The event of `known`, an earlier moment that nobody will wait for any more, is used again.
    """
    if not device.has_streams:
        return None
    queued = cast("StreamDevice", device)
    event = None if known is None else known.event
    return Moment(queued, queued.record(queued.current_stream(), event))


def wait_for(device: Device, moment: Moment | None) -> None:
    """Later work of a device's current stream comes after a moment; a device without streams waits at once."""
    if moment is None:
        return
    if not device.has_streams:
        moment.device.settle(moment.event)
        return
    queued = cast("StreamDevice", device)
    queued.wait(queued.current_stream(), moment.event)


def wait_on_host(moment: Moment | None) -> None:
    """The program waits for a moment."""
    if moment is not None:
        moment.device.settle(moment.event)


class InPlace:
    """Rows that the host writes where they lie: on the CPU."""

    pinned_bytes = 0

    def take(self, memory: np.ndarray) -> None:
        """Nothing is needed."""

    def write(self, target: Array, number: int, fill: Callable[[np.ndarray], Any]) -> None:
        """Let `fill` write to `target`."""
        fill(cast("np.ndarray", target))


class PinnedSlots(_Slots):
    """Rows that the host writes for a device, by way of pinned memory, u-batch by u-batch: nobody waits for a copy.

    Parameters
    ----------
    device : Device
    shape : tuple of int
        The most that is written at once.
    dtype : str
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str = "float32") -> None:
        super().__init__(shape, dtype)
        self._device = device
        self._read: list[Moment | None] = [None] * N_SLOTS

    def write(self, target: Array, number: int, fill: Callable[[np.ndarray], Any]) -> None:
        """Let `fill` write what is then queued for `target`, an array of as many rows or fewer."""
        slot = number % N_SLOTS
        wait_on_host(self._read[slot])  # of two u-batches ago
        rows = self._slots[slot][: len(target)]
        fill(rows)
        self._device.upload(target, rows)
        self._read[slot] = moment_of(self._device, self._read[slot])


def staging(
    device: Device, shape: tuple[int, ...], dtype: str = "float32"
) -> InPlace | PinnedSlots:
    """By what way the host's rows get to a device."""
    return PinnedSlots(device, shape, dtype) if device.has_streams else InPlace()
