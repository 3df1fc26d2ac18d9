"""The simulator as a device (see `lowlevel.devices`): the CUDA path's own code, on the host."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.gpu.kernel_device import KernelDevice
from lowlevel.gpu.loader import Library
from lowlevel.gpu.tensor_map import TensorMap as DescribedArray
from lowlevel.sizes import format_size

from . import streams
from .arguments import TensorMap
from .array import CudaSimArray, asnumpy, empty, name_of
from .module import Module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from lowlevel.devices import Device
    from lowlevel.gpu.instances import Kernel
    from lowlevel.shapes import Array


class CudaSimDevice(KernelDevice):
    """Memory of a simulated device and launches on it.

    Parameters
    ----------
    index : int
        Each has memory of its own, although all lies on the host: a call on one refuses the others' arrays.
    """

    n_multiprocessors = 132  # an H100's: plans made here are a GPU's
    max_shared_bytes = 227 << 10
    architecture = "90a"
    has_streams = True
    current_stream = staticmethod(streams.current)
    finish = staticmethod(streams.finish)

    def __init__(self, index: int) -> None:
        super().__init__(_LIBRARY)
        self._index = index
        self.name = name_of(index)

    def allocate(self, n_bytes: int) -> Array:
        try:
            return empty(n_bytes, np.uint8, self._index)
        except (MemoryError, ValueError):  # ValueError: more than an address can say
            raise MemoryError(
                f"the machine does not give {format_size(n_bytes)} of memory"
            ) from None

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        array = CudaSimArray(shape, dtype, memory, offset)
        array.index = self._index
        return array

    def address(self, array: Any) -> Any:
        is_own = isinstance(array, CudaSimArray) and array.index == self._index
        return array.ctypes.data if is_own else None

    def fill(self, memory: Array, start: int, stop: int, pattern: int) -> None:
        streams.touch("fill", writes=[memory[start:stop]])
        memory[start:stop].view(np.uint16)[...] = pattern

    def holds(self, memory: Array, start: int, stop: int, pattern: int) -> bool:
        streams.touch("holds", reads=[memory[start:stop]])
        return bool((memory[start:stop].view(np.uint16) == pattern).all())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return empty(shape, dtype, self._index)

    def plain(self, array: Array) -> Array:
        return array if type(array) is CudaSimArray else array.view(CudaSimArray)

    def writable(self, array: Array) -> bool:
        return array.flags.writeable

    def freeze(self, array: Array) -> None:
        array.flags.writeable = False

    def from_host(self, array: np.ndarray) -> Array:
        target = empty(array.shape, array.dtype, self._index)
        streams.touch("from_host", writes=[target])
        target[...] = array
        return target

    def upload(self, target: Array, array: np.ndarray) -> None:
        # What is not pinned may be written again as soon as this returns, as with CUDA.
        streams.touch("upload", reads=[array] if _is_pinned(array) else [], writes=[target])
        target[...] = array

    def pinned(self, n_bytes: int) -> np.ndarray:
        memory = np.asarray(empty(n_bytes, np.uint8))  # plain: it is the host's
        start = memory.ctypes.data
        _PINNED[start] = start + n_bytes
        weakref.finalize(memory, _PINNED.pop, start, None)
        return memory

    def copy_out(self, array: Array, out: np.ndarray) -> None:
        if not _is_pinned(out):
            raise ValueError("out: expected memory of `pinned`: a GPU would wait for any other")
        streams.touch("copy_out", reads=[array], writes=[out])
        np.copyto(out, array, casting="no")

    def free_bytes(self) -> int | None:
        return None

    def to_host(self, array: Array) -> np.ndarray:
        streams.touch("to_host", reads=[array])
        self.synchronise()
        return asnumpy(array)

    def download(self, array: Array, out: np.ndarray) -> None:
        streams.touch("download", reads=[array])
        self.synchronise()
        out[...] = array

    def reach(self, peer: Device) -> None:
        """All memory lies on the host."""

    def receive(self, target: Array, source: Array) -> None:
        streams.touch("peer copy", [source], [target])
        np.copyto(target, source, casting="no")

    def own_stream(self) -> AbstractContextManager:
        return streams.Stream()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The simulator has no graphs: everything is launched again."""
        return run

    def synchronise(self) -> None:
        streams.current().synchronise()

    def record(self, stream: Any, event: Any = None) -> Any:
        return stream.record()

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait(event)

    def settle(self, event: Any) -> None:
        streams.settle(event)

    def launch(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int = 0
    ) -> None:
        arrays = [
            (parameter, argument)
            for parameter, argument in zip(kernel.parameters, arguments, strict=False)
            if isinstance(argument, CudaSimArray)
        ]
        reads = [array for parameter, array in arrays if parameter.startswith("const ")]
        reads += [argument.array for argument in arguments if isinstance(argument, DescribedArray)]
        writes = [array for parameter, array in arrays if not parameter.startswith("const ")]
        streams.touch(kernel.name, reads, writes)
        super().launch(kernel, n_blocks, arguments, shared_mem)

    def start_in_haste(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int
    ) -> bool:
        return False

    def start(
        self, function: Any, grid: tuple, block: tuple, arguments: Sequence[Any], shared_mem: int
    ) -> None:
        if shared_mem > function.max_dynamic_shared_size_bytes:
            function.max_dynamic_shared_size_bytes = shared_mem
        function(grid, block, arguments, shared_mem=shared_mem)

    def tensor_map(self, described: DescribedArray) -> Any:
        return TensorMap(*described)

    @contextlib.contextmanager
    def gemm(self, workspace: Array) -> Iterator[Any]:
        def product(a, b, c, **options):
            streams.touch("gemm", reads=[a, b], writes=[c, workspace])
            _product(a, b, c, **options)

        yield product

    def copy_flat(self, target: Array, source: Array) -> None:
        streams.touch("copy", [source], [target])
        np.copyto(target, source, casting="no")


def _product(a, b, c, transposed=False, accumulate=False, may_round=False):
    """The host's: what cuBLAS does on a GPU, nothing rounded to TF32."""
    a, b, c = (np.asarray(array) for array in (a, b, c))
    if not a.dtype == b.dtype == c.dtype:
        raise TypeError(f"gemm: expected arrays of one dtype, got {a.dtype}, {b.dtype}, {c.dtype}")
    with np.errstate(all="ignore"):  # NaN and inf in keys that are left out
        for x, y, target in zip(np.broadcast_to(a, (len(c), *a.shape[1:])), b, c, strict=True):
            x, y = (each.astype(np.float32, copy=False) for each in (x, y))
            made = x @ (y.T if transposed else y)
            target[...] = target + made if accumulate else made


def _compile_module(text, name, options, expressions, architecture):
    return Module(name, options, expressions, code=text)


# Pinned memory that there is: where it starts, and where it ends.
_PINNED: dict[int, int] = {}


def _is_pinned(array):
    address = array.ctypes.data
    return any(start <= address < stop for start, stop in list(_PINNED.items()))


# Of all simulated devices.
_LIBRARY = Library(_compile_module)


def open_device(index: int) -> CudaSimDevice:
    return CudaSimDevice(index)
