"""Checking a launch's arguments, and laying their memory out for the runners.

Every array is copied into memory that runners and Python share, at a "device address" with nothing
else for a gigabyte around. Its end touches an unmapped page, or its start (orders "reverse" and
"lifo"); what is left of its own pages holds a pattern and is checked afterwards. An array keeps its
address modulo 16, for vector loads, so that up to 15 bytes may lie between it and the unmapped page;
with `Guard.exact` (orders "random" and "lifo") only what its elements need is kept, and none do.
Arrays that share memory keep doing so. Pages of arrays that only const pointers name are mapped
read-only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowlevel.gpu.tensor_map import COLUMNS, describable, whole_strides

from .array import poison_bytes, raw_bytes
from .errors import ArgumentError, OutOfBoundsError
from .protocol import MAX_EXTENTS, MAX_PARAMETER_BYTES, MAX_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from . import protocol


PAGE = 4096
_FIRST_ADDRESS = 0x20_0000_0000
_GAP = 1 << 30
_MAP_BYTES = 128
_BOX = np.dtype(
    [
        ("address", "<u8"),
        ("lengths", "<u8", 3),
        ("strides", "<u8", 2),
        ("box", "<u4", 3),
        ("magic", "<u4"),
    ]
)
_BOX_MAGIC = 0x50414D54
_LARGEST_ALIGNMENT = 16  # of any vector load: what the layout keeps of an array's own address


class Guard(NamedTuple):
    """Which side of the arrays touches an unmapped page, whether nothing lies between, and the word that
    fills the rest of their pages."""

    at_start: bool
    exact: bool
    fill: int


class Variable(NamedTuple):
    """A ``__device__`` variable: its contents between launches, and where kernels see it."""

    name: str
    contents: np.ndarray  # of uint8
    element: int
    address: int


class Parameter(NamedTuple):
    """A kernel's parameter, as include/cudasim/kernel_table.h describes it."""

    name: str
    code: str  # NumPy type of the value or of what it points to; "bf2", "c1" (char), "V" (other)
    count: int  # type: ignore[assignment]  # how many of them: 4 for float4 (instead of tuple's method)
    bytes: int
    pointee: int  # bytes of what a pointer points to; 0: not a pointer
    alignment: int  # of that
    is_const: bool

    @property
    def type_name(self) -> str:
        names = {
            "bf2": "bfloat16",
            "c1": "char",
            "V": f"a struct of {self.pointee or self.bytes} bytes",
        }
        name = names.get(self.code) or np.dtype(self.code).name
        if self.code == "V" and self.pointee == 1:
            name = "any type"
        return name + (f" x {self.count}" if self.count > 1 else "")


class PointerTable:
    """An argument for ``T* const*``: the device addresses of several arrays.

    Parameters
    ----------
    arrays : sequence of ndarray
        Kernels may write those that are writeable.
    """

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self.arrays = tuple(arrays)
        for index, array in enumerate(self.arrays):
            if not isinstance(array, np.ndarray):
                raise ArgumentError(f"pointer table: entry {index} is {array!r}, not an array")


class TensorMap:
    """An argument for ``const __grid_constant__ ptx::TensorMap``: boxes of an array (heads, rows, columns).

    Parameters
    ----------
    array : ndarray of 16-bit elements, (heads, rows, columns)
    rows : int
        Of a box, of 64 columns.
    """

    def __init__(self, array: np.ndarray, rows: int) -> None:
        problems = {
            "an array (heads, rows, columns)": isinstance(array, np.ndarray) and array.ndim == 3,
            "16-bit elements": getattr(array, "itemsize", 0) == 2,
            "1 to 256 rows in a box": 1 <= rows <= 256,
        }
        missing = [what for what, holds in problems.items() if not holds]
        if not missing and not describable(array.ctypes.data, array.shape, array.strides):
            missing = ["rows that start at multiples of 16 bytes, one behind the other"]
        if missing:
            raise ArgumentError(
                f"tensor map: expected {missing[0]}, got {_describe(array)}, {rows} rows"
            )
        self.array, self.rows = array, rows

    def bytes_at(self, address: int) -> bytes:
        """runtime.h's Box, in 128 bytes, of the array at a device address."""
        shape = self.array.shape
        box = np.zeros(1, _BOX)
        box["address"], box["lengths"] = address, shape[::-1]
        box["strides"] = whole_strides(shape, self.array.strides)
        box["box"], box["magic"] = (COLUMNS, self.rows, 1), _BOX_MAGIC
        return box.tobytes().ljust(_MAP_BYTES, b"\0")


# ---- checks -------------------------------------------------------------------------------------


def _scalar_fits(parameter, value):
    if isinstance(value, TensorMap):
        return parameter.code == "V" and parameter.bytes == _MAP_BYTES
    if not isinstance(value, (np.generic, np.ndarray)):
        return False
    if parameter.code == "V" or parameter.count > 1:
        return value.dtype.kind == "V" and value.nbytes == parameter.bytes
    if isinstance(value, np.ndarray):
        return False
    return _dtype_fits(parameter, value.dtype)


def _dtype_fits(parameter, dtype):
    if parameter.code == "V":
        # A struct such as a quantised block comes as bytes or as a structured type of its size.
        return (
            parameter.pointee <= 1
            or dtype in (np.uint8, np.int8)
            or (dtype.kind == "V" and dtype.itemsize == parameter.pointee)
        )
    if parameter.code == "bf2":  # NumPy knows bfloat16 through ml_dtypes only
        return dtype.name == "bfloat16" or dtype == np.uint16
    if parameter.code == "c1":
        return dtype in (np.int8, np.uint8)
    return dtype == np.dtype(parameter.code)


def _describe(value):
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, np.generic):
        return f"numpy.{value.dtype} {value!s}"
    return f"{type(value).__name__} {value!r}"


def _check_array(where, parameter, value):
    if not isinstance(value, np.ndarray):
        raise ArgumentError(
            f"{where}: the kernel takes a pointer to {parameter.type_name}; give an array "
            f"(or None for a null pointer), not {_describe(value)}"
        )
    if not _dtype_fits(parameter, value.dtype):
        raise ArgumentError(
            f"{where}: the kernel takes a pointer to {parameter.type_name}, got {_describe(value)}"
        )
    if not parameter.is_const and not value.flags.writeable:
        raise ArgumentError(f"{where}: the kernel may write here, but the array is read-only")
    needed = min(parameter.alignment, _LARGEST_ALIGNMENT)
    if value.size and value.ctypes.data % needed:
        raise ArgumentError(
            f"{where}: {parameter.type_name} needs an address that is a multiple of {needed}; "
            f"this array starts {value.ctypes.data % needed} bytes off"
        )


def _is_null(value):
    return value is None or (isinstance(value, np.integer) and value.nbytes == 8 and value == 0)


def check_arguments(kernel: str, parameters: Sequence[Parameter], values: Sequence[Any]) -> None:
    """Raise ArgumentError unless `values` fit `parameters`."""
    if len(values) != len(parameters):
        names = ", ".join(parameter.name for parameter in parameters)
        raise ArgumentError(
            f"{kernel}: {len(values)} arguments given, {len(parameters)} declared ({names})"
        )
    if len(values) > MAX_PARAMETERS or sum(p.bytes for p in parameters) > MAX_PARAMETER_BYTES // 2:
        raise ArgumentError(f"{kernel}: more arguments than CUDA can pass")
    for index, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
        where = f"{kernel}: argument {index} ({parameter.name})"
        if not parameter.pointee:
            if not _scalar_fits(parameter, value):
                raise ArgumentError(
                    f"{where}: the kernel takes {parameter.type_name}; give a NumPy scalar of that "
                    f"type, not {_describe(value)}"
                )
        elif isinstance(value, PointerTable):
            if parameter.code != "u8":
                raise ArgumentError(
                    f"{where}: a pointer table, but the kernel takes a pointer to {parameter.type_name}"
                )
        elif not _is_null(value):
            _check_array(where, parameter, value)


# ---- layout -------------------------------------------------------------------------------------


class _Span:
    """Bytes of this process that runners shall see: one array, or several that overlap."""

    address: int  # these as soon as it has a place
    file_offset: int
    mapped: int
    start: int

    def __init__(self, low, high, writable, alignment):
        self.low, self.high, self.writable = low, high, writable
        self.alignment = alignment
        self.names = []  # (name, low, high, element)

    def place(self, guard):
        """Bytes to map, and where in them the array starts."""
        n_bytes = self.high - self.low
        unit = self.alignment if guard.exact else _LARGEST_ALIGNMENT
        phase = self.low % unit
        mapped = -(-(n_bytes + unit - 1) // PAGE) * PAGE if n_bytes else 0
        if not n_bytes:
            return 0, 0
        if guard.at_start:
            return mapped, phase
        start = mapped - n_bytes
        return mapped, start - (start - phase) % unit


def _byte_bounds(array):
    """First address and the one after the last, whatever the strides."""
    low = high = array.ctypes.data
    if not array.size:
        return low, high
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


class MemoryLayout:
    """Where each argument of one launch lies, in the shared file and in the runners' addresses.

    Parameters
    ----------
    parameters : sequence of Parameter
    values : sequence
        The arguments.
    guard : Guard
    variables : sequence of Variable

    Attributes
    ----------
    file_bytes : int
        Size that the shared file must have.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        values: Sequence[Any],
        guard: Guard,
        variables: Sequence[Variable] = (),
    ) -> None:
        self._fill = guard.fill
        self._keep = []  # tables made here: their memory must outlive the launch
        self._spans: list[_Span] = []
        tables = []
        for parameter, value in zip(parameters, values, strict=True):
            if isinstance(value, PointerTable):
                for index, array in enumerate(value.arrays):
                    name = f"{parameter.name}[{index}]"
                    self._add(name, array, array.flags.writeable)
                table = np.zeros(len(value.arrays), np.uint64)
                tables.append((table, value.arrays))
                self._keep.append(table)
                self._add(parameter.name, table, False)
            elif isinstance(value, TensorMap):
                self._add(parameter.name, value.array, False)
            elif isinstance(value, np.ndarray) and parameter.pointee:
                self._add(parameter.name, value, not parameter.is_const, parameter)
        self._merge_overlapping()
        n_names = sum(len(span.names) for span in self._spans)
        if max(len(self._spans), n_names) + len(variables) > MAX_EXTENTS:
            raise ArgumentError(f"more than {MAX_EXTENTS} arrays in one launch")
        self._place(guard)
        for table, arrays in tables:
            table[:] = [self.address_of(array) for array in arrays]
        self._place_variables(variables)
        self._table_of = {id(pointers): table for pointers, table in self._pair(values)}

    def _pair(self, values):
        tables = iter(self._keep)
        return [(value, next(tables)) for value in values if isinstance(value, PointerTable)]

    def _add(self, name, array, writable, parameter=None):
        low, high = _byte_bounds(array)
        alignment = max(array.dtype.alignment, parameter.alignment if parameter else 1)
        while low % alignment:  # of bytes that stand for something larger
            alignment //= 2
        span = _Span(low, high, writable, min(alignment, _LARGEST_ALIGNMENT))
        # A pointer to bytes of any type: count in the array's own elements.
        any_type = parameter is None or parameter.pointee == 1
        element = array.itemsize if any_type else parameter.pointee
        span.names.append((name, low, high, max(element, 1)))
        self._spans.append(span)

    def _merge_overlapping(self):
        self._spans.sort(key=lambda span: (span.low, span.high))
        merged = []
        for span in self._spans:
            last = merged[-1] if merged else None
            same = last and (span.low, span.high) == (last.low, last.high)
            if last and (span.low < last.high or same):
                last.high = max(last.high, span.high)
                last.writable |= span.writable
                last.alignment = max(last.alignment, span.alignment)
                last.names += span.names
            else:
                merged.append(span)
        self._spans = merged

    def _place(self, guard):
        address, offset = _FIRST_ADDRESS, 0
        for span in self._spans:
            mapped, start = span.place(guard)
            span.address, span.file_offset, span.mapped, span.start = address, offset, mapped, start
            address += mapped + _GAP - mapped % PAGE
            offset += mapped
        self.file_bytes = offset

    def _place_variables(self, variables):
        """Where the library has them, always at the end of their pages."""
        for name, contents, element, address in variables:
            low, high = _byte_bounds(contents)
            span = _Span(low, high, True, 1)
            span.names.append((name, low, high, element))
            span.start = address % PAGE
            span.address, span.file_offset = address - span.start, self.file_bytes
            span.mapped = -(-(span.start + contents.nbytes) // PAGE) * PAGE
            self._spans.append(span)
            self.file_bytes += span.mapped

    def address_of(self, array: np.ndarray) -> int:
        """The device address of the array's first element."""
        pointer = array.ctypes.data
        for span in self._spans:
            if span.low <= pointer < span.high or (not array.size and pointer == span.low):
                return span.address + span.start + pointer - span.low
        raise AssertionError("array without a place")

    def copy_in(self, memory: np.ndarray) -> None:
        """Fill `memory` (uint8, file_bytes) with the arrays, and the guards' pattern around them."""
        for span in self._spans:
            pages = memory[span.file_offset : span.file_offset + span.mapped]
            stop = span.start + span.high - span.low
            pages[: span.start] = poison_bytes(0, span.start, self._fill)
            pages[span.start : stop] = raw_bytes(span.low, span.high - span.low)
            pages[stop:] = poison_bytes(stop, span.mapped - stop, self._fill)

    def copy_out(self, kernel: str, memory: np.ndarray) -> None:
        """Copy back what the kernel may have written; raise OutOfBoundsError if it wrote beside."""
        for span in self._spans:
            if not span.writable:
                continue
            pages = memory[span.file_offset : span.file_offset + span.mapped]
            stop = span.start + span.high - span.low
            for begin, end, side in ((0, span.start, "before"), (stop, span.mapped, "behind")):
                if not np.array_equal(
                    pages[begin:end], poison_bytes(begin, end - begin, self._fill)
                ):
                    names = " / ".join(name for name, *_ in span.names)
                    raise OutOfBoundsError(
                        f"{kernel}: out of bounds: the kernel wrote just {side} {names}", kernel
                    )
        for span in self._spans:
            if span.writable:
                stop = span.file_offset + span.start + span.high - span.low
                raw_bytes(span.low, span.high - span.low)[:] = memory[
                    span.file_offset + span.start : stop
                ]

    def describe(self, launch: protocol.Launch) -> None:
        """Write extents and regions into the launch record."""
        regions = 0
        for index, span in enumerate(self._spans):
            extent = launch.extents[index]
            extent.address, extent.file_offset = span.address, span.file_offset
            extent.bytes, extent.writable = span.mapped, span.writable
            for name, low, high, element in span.names:
                region = launch.regions[regions]
                region.begin = span.address + span.start + low - span.low
                region.end = region.begin + high - low
                region.extent, region.element = index, element
                region.name = name.encode()[:39]
                regions += 1
        launch.n_extents, launch.n_regions = len(self._spans), regions

    def parameter_bytes(
        self, parameters: Sequence[Parameter], values: Sequence[Any]
    ) -> list[bytes]:
        """The bytes that each parameter holds when the kernel starts."""
        result = []
        for parameter, value in zip(parameters, values, strict=True):
            if isinstance(value, TensorMap):
                result.append(value.bytes_at(self.address_of(value.array)))
            elif not parameter.pointee:
                result.append(value.tobytes())
            elif _is_null(value):
                result.append(bytes(8))
            else:
                array = self._table_of[id(value)] if isinstance(value, PointerTable) else value
                result.append(np.uint64(self.address_of(array)).tobytes())
        return result
