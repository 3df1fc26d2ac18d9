"""What a device that runs CUDA kernels has beside what all have: what launchers ask of it, and what each adds itself."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

from lowlevel import devices
from lowlevel.devices import StreamDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowlevel.shapes import Array

    from .instances import Kernel
    from .tensor_map import TensorMap


class LaunchDevice(StreamDevice, Protocol):
    """`kernel_device.KernelDevice` does what "cuda:N" and "cudasim" do alike, above the little of each."""

    n_multiprocessors: int  # how many blocks' worth of hardware there is
    max_shared_bytes: int  # shared memory that one block may have
    architecture: str  # such as "90a": with its own instructions

    def launch(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int = 0
    ) -> None:
        """Run a kernel over a grid of one axis, in the order of the device's other work."""

    def runs(self, kernel: Kernel) -> bool:
        """Whether the device has the instructions that a kernel wants."""

    def start(
        self, function: Any, grid: tuple, block: tuple, arguments: Sequence[Any], shared_mem: int
    ) -> None:
        """One launch of a compiled kernel, its arguments checked."""

    def start_in_haste(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int
    ) -> bool:
        """One launch without much of a look at arguments; False: something is unusual, or it cannot; nothing was done."""

    def copy_flat(self, target: Array, source: Array) -> None:
        """Equal shapes, both without gaps, in one order."""

    def tensor_map(self, described: TensorMap) -> Any:
        """What a launch passes for it."""

    def gemm(self, workspace: Array) -> AbstractContextManager[Callable[..., None]]:
        """Context that yields ``product(a, b, c, transposed=False, accumulate=False, may_round=False)``.

        For arrays of one dtype, float32, float16 or bfloat16: a (batch, m, k), or (1, m, k) for all of the batch, b
        (batch, k, n) or with `transposed` (batch, n, k), c (batch, m, n), rows without gaps inside; c = a b, or c +=
        a b, summed in float32; `may_round`: float32 operands may be rounded to TF32. It needs no memory but
        `workspace`, an array of `layout.LEAST_WORKSPACE` bytes or more.
        """


def launch_device(name: str) -> LaunchDevice:
    """The device of a plan for GPUs."""
    return cast(LaunchDevice, devices.get(name))
