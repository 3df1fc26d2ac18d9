"""Devices by name: "cpu", "cuda:N" and "cudasim:N".

A device is an object that its own package provides as `open_device(index)` in a module named
`device`, loaded when first asked for; nothing on the ground imports one. `Device` says what all calls ask of it.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from .shapes import Array

_MODULES = {
    "cpu": "lowlevel.cpu.device",
    "cuda": "lowlevel.cuda.device",
    "cudasim": "lowlevel.cudasim.device",
}
_NAME = re.compile(r"cpu|(?:cudasim|cuda)(?::([0-9]{1,3}))?", re.ASCII)


class Device(Protocol):
    """What any call asks of a device: memory, copies, plans, kernels."""

    name: str  # "cpu", "cuda:0", ...
    room: str  # "cpu" or "gpu": the folder, on any floor, with kernels for it
    activations: tuple[
        str, ...
    ]  # names of the dtypes of what models hand on, which all calls take there
    planner: Any  # tiles and scratch of attention, pure arithmetic: cpu/layout.py, gpu/layout.py
    has_streams: bool  # whether work is queued on streams; then also what stands below
    in_host_memory: (
        bool  # its arrays are the host's: files are read where they are mapped, MPI reaches all
    )
    has_threads: (
        bool  # calls use as many threads as they are told; elsewhere plans alone go by `n_threads`
    )
    products_sort_rows: (
        bool  # `quant.matmul` sorts rows by expert; elsewhere they are best sorted before
    )

    def allocate(self, n_bytes: int) -> Array:
        """Flat memory of n_bytes, 256-byte aligned, contents undefined."""

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """A C-contiguous array over part of it that keeps it alive."""

    def address(self, array: Any) -> Any:
        """The address of the first element (int), or None for what is no array of the device."""

    def fill(self, memory: Array, start: int, stop: int, pattern: int) -> None:
        """Repeat a 16-bit pattern over bytes start..stop (both even)."""

    def holds(self, memory: Array, start: int, stop: int, pattern: int) -> bool:
        """Whether those bytes still hold the pattern."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """A C-contiguous array outside any pool."""

    def empty_aligned(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """One from the start of a cache line on, which NumPy's own large arrays miss by 16 bytes."""

    def plain(self, array: Array) -> Array:
        """The array without the ways of a subclass."""

    def copy(self, target: Array, source: Array) -> None:
        """Dtypes equal, any strides, no element in common; takes no memory.

        Shapes equal, or `source` has one plane (the first axis), which goes to every plane of `target`.
        """

    def join(self, target: Array, sources: Sequence[Array], axis: int) -> None:
        """Copy sources one after the other along an axis of target, which they fill."""

    def overlap(self, a: Array, b: Array) -> bool:
        """Whether they share an element (True also if that is too hard to say)."""

    def overlaps_itself(self, array: Array) -> bool:
        """Whether two of its indices may mean one place."""

    def writable(self, array: Array) -> bool: ...

    def freeze(self, array: Array) -> None:
        """Make later writes through it an error, where the device's arrays can."""

    def synchronise(self) -> None:
        """Wait for what this thread has queued."""

    def own_stream(self) -> AbstractContextManager:
        """Inside, work is queued apart from all other, and can be captured; it can be entered again and again."""

    def keep(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Run it, and give what makes the same launches over the same memory again, without checks where it can."""

    def keep_attention(self, run: Callable[[], Any]) -> Callable[[Any, Any, Any], bool]:
        """Run a call of `attention`, and give ``again(plan, k, v)``, which makes it with other keys, or says that it cannot."""

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """What `run` queues, to be queued again by one call: a graph, where there are such; inside `own_stream`."""

    def from_host(self, array: np.ndarray) -> Array:
        """A NumPy array's contents as a C-contiguous array of the device."""

    def upload(self, target: Array, array: np.ndarray) -> None:
        """Copy a NumPy array into one of the device that has its shape and dtype, and no gaps."""

    def to_host(self, array: Array) -> np.ndarray:
        """An array's contents as a NumPy array."""

    def download(self, array: Array, out: np.ndarray) -> None:
        """Copy one without gaps to a NumPy array of its shape and dtype; it is there when this returns."""

    def reach(self, peer: Device) -> None:
        """See that `receive` from another device of this kind goes directly, where the machine can."""

    def receive(self, target: Array, source: Array) -> None:
        """Copy from an array of another device of this kind, in this one's order; equal shapes, both without gaps."""

    def pinned(self, n_bytes: int) -> np.ndarray:
        """Memory of the host that copies reach at full speed: uint8, from a multiple of 256 on."""

    def copy_out(self, array: Array, out: np.ndarray) -> None:
        """Queue a copy of an array without gaps to pinned memory: nobody waits for it here.

        `upload` from pinned memory is queued likewise.
        """

    def free_bytes(self) -> int | None:
        """The most that could be taken now; None: nobody knows."""

    def resolve_n_threads(self, n_threads: int | None) -> int:
        """Threads, or multiprocessors, that a call may use; None: all there are."""

    @property
    def plan_limits(self) -> tuple:
        """What plans go by besides sizes and `n_threads`; hashable."""

    @property
    def attention(self) -> Any:
        """The module with ``run(plan, operands, scratch)``; asking for it loads kernels."""


class StreamDevice(Device, Protocol):
    """What pools ask of a device with streams beside."""

    def current_stream(self) -> Any:
        """The thread's current one; its `ptr` tells it from others."""

    def record(self, stream: Any, event: Any = None) -> Any:
        """An event after all that is queued on a stream now; one that is given is used again."""

    def wait(self, stream: Any, event: Any) -> None:
        """Later work of the stream comes after the event; the program does not wait."""

    def settle(self, event: Any) -> None:
        """The program waits for an event."""

    def finish(self) -> None:
        """Wait for all work of all streams."""


_open: dict[tuple[str, int], Device] = {}
_by_name: dict[str, Device] = {}  # as somebody spelt it -> device


def canonical_name(name: str) -> str:
    """`name` as devices spell it themselves: "cpu", "cuda:0" (for "cuda" too), "cudasim" (for "cudasim:0" too).

    Raises
    ------
    TypeError, ValueError
        Not a device's name.
    """
    kind, index = _parse(name)
    return f"{kind}:{index}" if kind == "cuda" or index else kind


def get(name: str) -> Device:
    """The device called `name`, the same object each time.

    Raises
    ------
    TypeError, ValueError
        Not a device's name, or one that this installation does not have.
    """
    device = _by_name.get(name) if isinstance(name, str) else None
    if device is not None:
        return device
    key = kind, index = _parse(name)
    if key not in _open:
        try:
            module = importlib.import_module(_MODULES[kind])
        except ModuleNotFoundError as error:
            # The device is there, a library that it needs is not.
            if not _MODULES[kind].startswith(error.name or "?"):
                raise
            raise ValueError(f'device: {name!r} is not part of this version; use "cpu"') from None
        _open[key] = module.open_device(index)
    return _by_name.setdefault(name, _open[key])


def of_array(array: Any, name: str) -> Device:
    """The device that an array lies on; `name` is the argument it came as, for the error.

    Raises
    ------
    TypeError
        No array of a known device, or one that hides elements (a masked array).
    """
    if type(array) is np.ndarray:  # as most are: in haste
        return get("cpu")
    if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):
        is_simulated = _is_made_by(array, "lowlevel.cudasim", "CudaSimArray")
        return get(array.device if is_simulated else "cpu")
    if _is_made_by(array, "cupy", "ndarray"):
        return get(f"cuda:{array.data.device_id}")
    raise TypeError(
        f"{name}: expected a NumPy array, got {type(array).__name__} (CuPy arrays will do too)"
    )


def kernels(floor: str, device: Device, name: str) -> ModuleType:
    """The module `name` of a floor's room for a device, ``quant.gpu.embed`` say; importing it may load Numba."""
    return _module(f"{floor}.{device.room}.{name}")


_module = functools.cache(importlib.import_module)


def _is_made_by(array, module, kind):
    """Whether `array` is of a module's type; if nobody has imported the module it is not."""
    return module in sys.modules and isinstance(array, getattr(sys.modules[module], kind))


def _parse(name):
    if not isinstance(name, str):
        raise TypeError(
            f'device: give a name such as "cpu" or "cuda:0"; got {name!r} ({type(name).__name__})'
        )
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'device: known are "cpu", "cuda:N" and "cudasim:N"; got {name!r}')
    return name.partition(":")[0], int(match.group(1) or 0)
