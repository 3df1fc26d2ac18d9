"""A GPU as a device (see `lowlevel.devices`), through CuPy.

Everything runs on CuPy's current stream, in order. What pools do about several streams:
`lowlevel.pool.stream_order`.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.sizes import format_size

from ..gpu import tensor_map
from ..gpu.kernel_device import KernelDevice, parsed
from ..gpu.loader import Library
from . import cublas, cupy_api, driver_launch
from .packed_launch import PackedLaunch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from lowlevel.gpu.instances import Kernel
    from lowlevel.gpu.tensor_map import TensorMap
    from lowlevel.shapes import Array


# Of all GPUs: CuPy loads a module on each that needs it.
_LIBRARY = Library(cupy_api.compile_module)
_DEFAULT_SHARED = 48 << 10
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 2, 3
_PEER_ALREADY_ENABLED = 704  # cudaErrorPeerAccessAlreadyEnabled
_PER_THREAD = 2  # cudaStreamPerThread: another stream in each thread under one name

_NO_WAIT = (
    "pool: a graph is being captured, and cannot wait for what other streams did with this memory; give the calls of a "
    "graph a pool of their own, or use that pool on the captured stream alone"
)


def _is_captured(stream):
    """Whether work for a stream goes into a graph; CUDA's default stream (0) cannot be captured."""
    return stream.ptr != 0 and stream.is_capturing()


class _OwnStream:
    """A stream as a context that makes its GPU CuPy's current one as well: CuPy enters no other GPU's.

    Threads may be inside at once, and it may be entered again inside.
    """

    def __init__(self, gpu, stream):
        self._gpu, self._stream = gpu, stream
        self._of_thread = threading.local()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._gpu())
            stack.enter_context(self._stream)
            entered = self._of_thread.__dict__.setdefault("entered", [])
            entered.append(stack.pop_all())
        return self

    def __exit__(self, *exception):
        return self._of_thread.entered.pop().__exit__(*exception)


class CudaDevice(KernelDevice):
    """Memory of one GPU and launches on it."""

    def __init__(self, index: int) -> None:
        super().__init__(_LIBRARY)
        cupy_api.check_device(index)
        self._cupy = cupy_api.load()
        self._index = index
        self._null = np.uintp(0)
        self._launch_kernel = driver_launch.launcher(index)
        self._packed: dict[
            int, tuple
        ] = {}  # id of a kernel -> (kernel, function, the driver's handle, PackedLaunch)
        self._shared_bytes: dict[
            int, tuple[Any, int]
        ] = {}  # id of a function -> (function, shared memory that it may have)
        self.name = f"cuda:{index}"
        self.n_multiprocessors = cupy_api.n_multiprocessors(index)
        self.max_shared_bytes = cupy_api.max_shared_bytes(index)
        self.architecture = cupy_api.architecture(index)

    def _current(self):
        """Context in which this GPU is CuPy's current one."""
        return self._cupy.cuda.Device(self._index)

    def allocate(self, n_bytes: int) -> Array:
        runtime_error = self._cupy.cuda.runtime.CUDARuntimeError
        with self._current():
            try:
                memory = self._cupy.cuda.memory.Memory(n_bytes)  # cudaMalloc: none of CuPy's pools
            except (runtime_error, OverflowError) as error:
                if getattr(error, "status", _OUT_OF_MEMORY) != _OUT_OF_MEMORY:
                    raise
                raise MemoryError(
                    f"{self.name} does not give {format_size(n_bytes)} of memory"
                ) from None
            pointer = self._cupy.cuda.memory.MemoryPointer(memory, 0)
            return self._cupy.ndarray((n_bytes,), np.uint8, pointer)

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return self._array(shape, dtype, memory.data + offset)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return self._array(shape, dtype, None)

    def _array(self, shape, dtype, pointer):
        with self._current():
            try:
                return self._cupy.ndarray(shape, dtype, pointer)
            except (TypeError, ValueError) as error:
                raise self._no_such_dtype(dtype, error) from None

    def _no_such_dtype(self, dtype, error):
        return TypeError(
            f"dtype: CuPy {self._cupy.__version__} has no arrays of {np.dtype(dtype)} ({error}); "
            "bool, integers, floats and complex will do, bfloat16 from CuPy 14.1 on"
        )

    def address(self, array: Any) -> Any:
        if isinstance(array, self._cupy.ndarray):
            data = array.data
            if data.device_id == self._index:
                return data.ptr
        return None

    def fill(self, memory: Array, start: int, stop: int, pattern: int) -> None:
        with self._current():
            memory[start:stop].view(np.uint16).fill(pattern)

    def holds(self, memory: Array, start: int, stop: int, pattern: int) -> bool:
        with self._current():
            return bool((memory[start:stop].view(np.uint16) == pattern).all())

    def plain(self, array: Array) -> Array:
        if type(array) is self._cupy.ndarray:
            return array
        return self._cupy.ndarray(array.shape, array.dtype, array.data, array.strides)

    def writable(self, array: Array) -> bool:
        return True

    def freeze(self, array: Array) -> None:
        """CuPy knows no read-only arrays."""

    def from_host(self, array: np.ndarray) -> Array:
        with self._current():
            try:
                return self._cupy.array(array, order="C")
            except (TypeError, ValueError) as error:
                raise self._no_such_dtype(array.dtype, error) from None

    def upload(self, target: Array, array: np.ndarray) -> None:
        with self._current():
            target.set(array, stream=self._cupy.cuda.get_current_stream())

    def to_host(self, array: Array) -> np.ndarray:
        with self._current():
            return self._cupy.asnumpy(array)

    def download(self, array: Array, out: np.ndarray) -> None:
        with self._current():
            stream = self._cupy.cuda.get_current_stream()
            array.get(stream=stream, out=out)
            stream.synchronize()

    def pinned(self, n_bytes: int) -> np.ndarray:
        with self._current():
            memory = self._cupy.cuda.alloc_pinned_memory(n_bytes)
        return np.frombuffer(memory, np.uint8, n_bytes)

    def copy_out(self, array: Array, out: np.ndarray) -> None:
        with self._current():
            stream = self._cupy.cuda.get_current_stream().ptr
            self._cupy.cuda.runtime.memcpyAsync(
                out.ctypes.data, array.data.ptr, array.nbytes, _DEVICE_TO_HOST, stream
            )

    def free_bytes(self) -> int | None:
        with self._current():
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            return free

    def reach(self, peer: Any) -> None:
        runtime, other = self._cupy.cuda.runtime, peer._index
        if other == self._index or not runtime.deviceCanAccessPeer(self._index, other):
            return  # the driver goes through the host then
        with self._current():
            try:
                runtime.deviceEnablePeerAccess(other)
            except runtime.CUDARuntimeError as error:
                if error.status != _PEER_ALREADY_ENABLED:
                    raise

    def receive(self, target: Array, source: Array) -> None:
        with self._current():
            stream = self._cupy.cuda.get_current_stream().ptr
            self._cupy.cuda.runtime.memcpyPeerAsync(
                target.data.ptr,
                self._index,
                source.data.ptr,
                source.data.device_id,
                target.nbytes,
                stream,
            )

    def own_stream(self) -> AbstractContextManager:
        with self._current():
            return _OwnStream(self._current, self._cupy.cuda.Stream(non_blocking=True))

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        stream = self._cupy.cuda.get_current_stream(self._index)
        # Threads of other devices go on meanwhile with calls that a capture may not hold.
        stream.begin_capture(mode=self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            run()
        finally:
            graph = stream.end_capture()
        return lambda: graph.launch(stream)

    def synchronise(self) -> None:
        with self._current():
            self._cupy.cuda.get_current_stream().synchronize()

    has_streams = True

    def current_stream(self) -> Any:
        stream = self._cupy.cuda.get_current_stream(self._index)
        if stream.ptr == _PER_THREAD:
            raise ValueError(
                "stream: pools cannot order CuPy's per-thread default stream; make one by "
                "cupy.cuda.Stream(non_blocking=True)"
            )
        return stream

    def record(self, stream: Any, event: Any = None) -> Any:
        if event is None:
            with self._current():
                event = self._cupy.cuda.Event(disable_timing=True)
        if not _is_captured(stream):
            # What is captured runs later, and no other stream may wait for it.
            event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        if _is_captured(stream):
            raise RuntimeError(_NO_WAIT)
        stream.wait_event(event)

    def settle(self, event: Any) -> None:
        event.synchronize()

    def finish(self) -> None:
        if _is_captured(self._cupy.cuda.get_current_stream(self._index)):
            raise RuntimeError(_NO_WAIT)
        with self._current():
            self._cupy.cuda.runtime.deviceSynchronize()

    def launch(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int = 0
    ) -> None:
        if self._cupy.cuda.runtime.getDevice() == self._index:
            super().launch(kernel, n_blocks, arguments, shared_mem)
            return
        with self._current():  # compiling looks at the current GPU too
            super().launch(kernel, n_blocks, arguments, shared_mem)

    def start_in_haste(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int
    ) -> bool:
        known = self._packed.get(id(kernel))
        if known is None:
            function = self._library.function(kernel)
            packed = PackedLaunch(
                parsed(kernel.parameters), self._cupy.ndarray, self._index, self.tensor_map
            )
            known = self._packed[id(kernel)] = kernel, function, function.kernel.ptr, packed
        _, function, entry, packed = known
        if shared_mem > _DEFAULT_SHARED:
            self._allow_shared(function, shared_mem)
        stream = self._cupy.cuda.get_current_stream(self._index).ptr

        def launch(places):
            self._launch_kernel(entry, n_blocks, kernel.block, shared_mem, stream, places)

        return packed(arguments, launch)

    def start(
        self, function: Any, grid: tuple, block: tuple, arguments: Sequence[Any], shared_mem: int
    ) -> None:
        if shared_mem > _DEFAULT_SHARED:
            self._allow_shared(function, shared_mem)
        null = self._null
        arguments = tuple([null if argument is None else argument for argument in arguments])
        function(grid, block, arguments, shared_mem=shared_mem)

    def _allow_shared(self, function, n_bytes):
        """Let launches of a function have so much; the driver is asked only when that grows."""
        _, allowed = self._shared_bytes.get(id(function), (None, 0))
        if n_bytes > allowed:
            if n_bytes > function.max_dynamic_shared_size_bytes:
                function.max_dynamic_shared_size_bytes = n_bytes
            self._shared_bytes[id(function)] = function, n_bytes

    def tensor_map(self, described: TensorMap) -> Any:
        array = described.array
        return tensor_map.encode(array.data.ptr, array.shape, array.strides, described.rows)

    @contextlib.contextmanager
    def gemm(self, workspace: Array) -> Iterator[Any]:
        with self._current(), cublas.product(workspace) as product:
            yield product

    def copy_flat(self, target: Array, source: Array) -> None:
        with self._current():
            stream = self._cupy.cuda.get_current_stream().ptr
            self._cupy.cuda.runtime.memcpyAsync(
                target.data.ptr, source.data.ptr, target.nbytes, _DEVICE_TO_DEVICE, stream
            )


def open_device(index: int) -> CudaDevice:
    return CudaDevice(index)
