"""What "cuda:N" and "cudasim" do alike, above the little that each does in its own way.

A device adds: `allocate`, `view`, `address`, `fill`, `holds`, `empty`, `plain`, `writable`, `from_host`, `to_host` and so
on (see lowlevel/devices.py), and of launch_device.py all but `launch` and `runs`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel.axes import span
from lowlevel.checks import whole_number
from lowlevel.cpu import copy as host_copies

from . import copies, layout
from .tensor_map import TensorMap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array

    from .instances import Kernel
    from .loader import Library


_MAX_GRID = 2**31 - 1


if TYPE_CHECKING:
    # A device that lacks something is told by mypy; nothing is inherited that does nothing.
    _Base = LaunchDevice
else:
    _Base = object


class KernelDevice(_Base):
    """Launches and copies of a device that runs CUDA kernels, which come from a loader.Library."""

    room = "gpu"
    in_host_memory = has_threads = False
    products_sort_rows = True
    activations = ("float32", "float16", "bfloat16")

    def __init__(self, library: Library) -> None:
        self._library = library

    def launch(
        self, kernel: Kernel, n_blocks: int, arguments: Sequence[Any], shared_mem: int = 0
    ) -> None:
        """Run a kernel over a grid of one axis, in the order of the device's other work.

        Parameters
        ----------
        kernel : instances.Kernel
        n_blocks : int
        arguments : sequence
            Arrays of this device for pointers (None: null), int or float for scalars, 0-d structured
            NumPy arrays for structures, each as the kernel's `parameters` say.
        shared_mem : int
            Bytes of dynamic shared memory.

        Raises
        ------
        TypeError, ValueError, OverflowError
            Before anything runs: arguments that do not fit, or a grid that no device takes.
        """
        if not 1 <= n_blocks <= _MAX_GRID:
            raise ValueError(
                f"{kernel.name}: a grid of {n_blocks} blocks; 1 to {_MAX_GRID} will do"
            )
        if self.start_in_haste(kernel, n_blocks, arguments, shared_mem):
            return
        parameters = parsed(kernel.parameters)
        if len(arguments) != len(parameters):
            raise TypeError(
                f"{kernel.name}: {len(arguments)} arguments for {len(parameters)} parameters"
            )
        checked = []
        try:
            for parameter, argument in zip(parameters, arguments, strict=True):
                if parameter.is_map:
                    checked.append(self._map_argument(argument))
                elif parameter.is_array:
                    checked.append(self._array_argument(parameter, argument))
                else:
                    checked.append(_scalar(parameter, argument))
        except (TypeError, ValueError, OverflowError) as error:
            where = f"{kernel.name}: argument {len(checked)}"
            raise type(error)(f"{where}: {error}") from None
        arguments = tuple(checked)
        function = self._library.function(kernel)
        self.start(function, (n_blocks,), (kernel.block,), arguments, shared_mem)

    def runs(self, kernel: Kernel) -> bool:
        """Whether the device has the instructions that a kernel wants."""
        return kernel.architecture in (None, self.architecture)

    def keep(self, run: Callable[[], Any]) -> Callable[[], Any]:
        run()
        return run

    def keep_attention(self, run: Callable[[], Any]) -> Callable[[Any, Any, Any], bool]:
        run()
        return _not_kept

    def _array_argument(self, parameter, argument):
        if argument is None:
            return None
        if self.address(argument) is None:
            raise TypeError(f"expected an array on {self.name}, got {type(argument).__name__}")
        if not parameter.is_const and not self.writable(argument):
            raise ValueError("the array is read-only")
        dtype, given = parameter.dtype, argument.dtype
        if dtype is None or given == dtype:
            return argument
        # 16-bit floats go as their bits, nothing else is reinterpreted.
        if dtype == np.uint16 and _is_16_bit_float(given):
            return argument.view(np.uint16)
        raise TypeError(f"expected {dtype}, got {given}")

    def _map_argument(self, argument):
        if not isinstance(argument, TensorMap) or self.address(argument.array) is None:
            raise TypeError(f"expected a TensorMap of an array on {self.name}, got {argument!r}")
        return self.tensor_map(argument)

    def empty_aligned(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return self.empty(shape, dtype)

    def copy(self, target: Array, source: Array) -> None:
        copies.copy(self, target, source)

    def join(self, target: Array, sources: Sequence[Array], axis: int) -> None:
        copies.join(self, target, sources, axis)

    def overlap(self, first: Array, second: Array) -> bool:
        low, high = span(self.address(first), first)
        other_low, other_high = span(self.address(second), second)
        if high <= other_low or other_high <= low:
            return False
        return host_copies.overlap(self._shadow(first), self._shadow(second))

    def overlaps_itself(self, array: Array) -> bool:
        return host_copies.overlaps_itself(array)

    def resolve_n_threads(self, n_threads: int | None) -> int:
        """How many multiprocessors attention plans for; `n_threads` None: all there are."""
        if n_threads is None:
            return self.n_multiprocessors
        return whole_number(n_threads, "n_threads", 1)

    @property
    def plan_limits(self) -> tuple:
        """What plans go by besides sizes and `n_threads` (see `lowlevel.attention.plan`)."""
        return self.max_shared_bytes, self.architecture

    planner = (
        layout  # tiles and scratch of attention, pure arithmetic (see `lowlevel.attention.plan`)
    )

    @property
    def attention(self) -> Any:
        """``run(plan, operands, scratch)``."""
        from . import attention

        return attention

    def _shadow(self, array):
        """A NumPy array with the same addresses, for questions about them: never to be read."""
        return np.asarray(_Shadow(self.address(array), array))


class _Shadow:
    def __init__(self, address, array):
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.dtype.itemsize}",
        }


class _Parameter(NamedTuple):
    """What a kernel's parameter takes."""

    is_array: bool
    is_map: bool
    is_const: bool  # only read
    dtype: np.dtype | None  # None: any
    least: int  # of an integer
    most: int


@functools.cache
def parsed(parameters: tuple[str, ...]) -> tuple[_Parameter, ...]:
    """The `_Parameter` of each code of a kernel's `parameters`."""
    return tuple(map(_parsed_one, parameters))


def _parsed_one(parameter):
    code = parameter.removeprefix("const ")
    if code.endswith("*"):
        dtype = None if code == "V*" else np.dtype(code[:-1])
        return _Parameter(True, False, code != parameter, dtype, 0, 0)
    if code == "map":
        return _Parameter(False, True, True, None, 0, 0)
    dtype = np.dtype(code)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    return _Parameter(False, False, True, dtype, limits and limits.min, limits and limits.max)


@functools.lru_cache(maxsize=64)  # NumPy puts a dtype's name together each time it is asked
def _is_16_bit_float(dtype):
    return dtype.name in ("float16", "bfloat16")


def _scalar(parameter, value):
    dtype = parameter.dtype
    if dtype.kind == "V":
        if not isinstance(value, np.ndarray) or value.ndim or value.nbytes != dtype.itemsize:
            raise TypeError(f"expected a 0-d structure of {dtype.itemsize} bytes")
        return value.view(dtype)  # its bytes: CuPy would look at each field
    is_integer = dtype.kind in "iu"
    if type(value) is not int and not _is_number(value, is_integer):
        raise TypeError(f"expected a number for {dtype}, got {value!r}")
    if is_integer and not parameter.least <= value <= parameter.most:
        raise OverflowError(f"{value} does not fit {dtype}")
    return dtype.type(value)


def _is_number(value, is_integer):
    kinds = (int, np.integer) if is_integer else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, (bool, np.bool_))


def _not_kept(plan, k, v):
    return False
