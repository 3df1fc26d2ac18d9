"""The header of a GGUF file, read from untrusted bytes.

`gguf.GGUFReader` builds several NumPy arrays per token and believes every count; here nothing is
allocated on the word of the file, arrays are only skipped over, and whatever is wrong becomes a
`ModelFileError` that names the file and the place.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats import FORMATS
from .other_types import type_name

if TYPE_CHECKING:
    import mmap
    from typing import Any, TypeAlias

    Buffer: TypeAlias = bytes | memoryview | mmap.mmap


MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
# Sanity limits, far above any real file; they bound the time that a hostile header can cost.
MAX_ENTRIES = 2**20  # metadata entries, and tensors, of one file
MAX_KEY_BYTES = 2**16 - 1  # the GGUF specification's own limit
MAX_ARRAY_STRINGS = 2**24  # strings in all arrays of one file together
MAX_WEIGHTS = 2**60  # of a tensor, empty axes counted as 1: eight bytes a weight fit in an int64

STRING, ARRAY = 8, 9
# value type -> (name, NumPy type)
SCALARS: dict[int, tuple[str, np.dtype]] = {
    0: ("u8", np.dtype("<u1")),
    1: ("i8", np.dtype("<i1")),
    2: ("u16", np.dtype("<u2")),
    3: ("i16", np.dtype("<i2")),
    4: ("u32", np.dtype("<u4")),
    5: ("i32", np.dtype("<i4")),
    6: ("f32", np.dtype("<f4")),
    7: ("bool", np.dtype("?")),
    10: ("u64", np.dtype("<u8")),
    11: ("i64", np.dtype("<i8")),
    12: ("f64", np.dtype("<f8")),
}
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class ModelFileError(ValueError):
    """A file that is not the GGUF it should be: which file, and what is wrong with it."""


def shown(name: object, limit: int = 80) -> str:
    """`name` from an untrusted file, quoted and cut short for an error message."""
    text = repr(name)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class Value(NamedTuple):
    """Where one metadata value lies: decoded when somebody asks for it.

    `type` is a GGUF value type; of an array it is the items' type and `count` their number,
    of a single value `count` is None. `offset` is that of the value's first byte (of an array:
    of its first item; of a string: of its length).
    """

    type: int
    count: int | None  # type: ignore[assignment]  # instead of tuple's method
    offset: int


@dataclass(frozen=True)
class TensorInfo:
    """One row of a model file's table of contents.

    Attributes
    ----------
    name : str
    qtype : gguf.GGMLQuantizationType or int
        A plain int is a type number that this version of the gguf package does not know.
    shape : tuple of int
        NumPy order, slowest axis first: (..., rows, columns), in weights. An axis may be 0, and
        there may be none at all, which is one weight.
    path : str
        The file, of a split model the part, that holds the tensor.
    offset : int
        Of its first byte in that file.
    n_bytes : int
        Of a type whose blocks are unknown: all up to the next tensor or the file's end, which is at
        most the padding too much.
    size_known : bool
        False where `n_bytes` is such a bound.
    """

    name: str
    qtype: GGMLQuantizationType | int
    shape: tuple
    path: str
    offset: int
    n_bytes: int
    size_known: bool = True

    @property
    def type_name(self) -> str:
        """GGUF's name of the type, ik_llama.cpp's, or the number of one that nobody here knows."""
        return type_name(self.qtype)


@dataclass(frozen=True)
class Header:
    """A parsed header: `metadata` maps keys to `Value`, `tensors` names to `TensorInfo`.

    `data_start` is the offset in the file from which the tensors' own offsets count.
    """

    version: int
    alignment: int
    data_start: int
    metadata: dict
    tensors: dict


class Cursor:
    """Reads little-endian fields off `buffer` and refuses to leave it."""

    def __init__(self, path: str, buffer: Buffer, position: int = 0) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = position

    def error(self, text: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {text}")

    def require(self, n_bytes: int, what: str) -> int:
        """Position of the next `n_bytes` bytes, which are stepped over."""
        start = self.position
        if n_bytes > self.size - start:
            raise self.error(
                f"truncated or corrupt: {what} takes {n_bytes} bytes from offset {start}, "
                f"the file ends at {self.size}"
            )
        self.position = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.buffer, self.require(4, what))[0]

    def i32(self, what: str) -> int:
        return _I32.unpack_from(self.buffer, self.require(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.buffer, self.require(8, what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        n_bytes = self.u64(f"the length of {what}")
        if limit is not None and n_bytes > limit:
            raise self.error(
                f"corrupt: {what} is {n_bytes} bytes long, at most {limit} are allowed"
            )
        start = self.require(n_bytes, what)
        try:
            return str(self.buffer[start : start + n_bytes], "utf-8")
        except UnicodeDecodeError as bad:
            raise self.error(f"corrupt: {what} is not valid UTF-8 ({bad.reason})") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings without looking at their text."""
        if count > (self.size - self.position) // 8:
            self.require(8 * count, f"{what} ({count} strings)")
        buffer, position, size = self.buffer, self.position, self.size
        unpack = _U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(buffer, position)[0]
        except (struct.error, OverflowError):
            position = size + 1
        if position > size:
            raise self.error(
                f"truncated or corrupt: a string of {what} reaches past the file's end at {size}"
            )
        self.position = position


def read_header(path: str, buffer: Buffer) -> Header:
    """Parse and check the header of one GGUF file.

    Parameters
    ----------
    path : str
        For messages and `TensorInfo.path`.
    buffer : mmap or bytes
        The whole file.

    Returns
    -------
    Header

    Raises
    ------
    ModelFileError
    """
    cursor = Cursor(path, buffer)
    version = _read_version(cursor)
    n_tensors = cursor.u64("the number of tensors")
    n_metadata = cursor.u64("the number of metadata entries")
    for count, what in ((n_tensors, "tensors"), (n_metadata, "metadata entries")):
        if count > MAX_ENTRIES:
            raise cursor.error(f"corrupt: claims {count} {what}, at most {MAX_ENTRIES} are allowed")
    metadata = _read_metadata(cursor, n_metadata)
    alignment = _alignment(cursor, metadata)
    rows = [_read_tensor_row(cursor, index) for index in range(n_tensors)]
    data_start = _rounded_up(cursor.position, alignment)
    tensors = {}
    for row in rows:
        info = _tensor_info(cursor, row, data_start, alignment)
        if info.name in tensors:
            raise cursor.error(f"corrupt: two tensors are named {shown(info.name)}")
        tensors[info.name] = info
    _settle_sizes(cursor, tensors)
    return Header(version, alignment, data_start, metadata, tensors)


def _read_version(cursor):
    start = cursor.require(4, "the magic number") if cursor.size >= 4 else 0
    magic = bytes(cursor.buffer[start : start + 4])
    if magic != MAGIC:
        hint = ""
        if bytes(cursor.buffer[:7]) == b"version":
            hint = ", perhaps a git-lfs pointer instead of the file itself (git lfs pull)"
        raise cursor.error(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}{hint}")
    version = cursor.u32("the version")
    if version in SUPPORTED_VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in SUPPORTED_VERSIONS:
        raise cursor.error(
            f"a big-endian GGUF file (version {swapped}); only little-endian ones can be read: "
            "convert it with the gguf package's gguf-convert-endian"
        )
    raise cursor.error(f"GGUF version {version}; versions 2 and 3 can be read")


def _read_metadata(cursor, count):
    metadata = {}
    n_strings_left = MAX_ARRAY_STRINGS
    for index in range(count):
        key = cursor.text(f"the key of metadata entry {index}", MAX_KEY_BYTES)
        what = f"metadata {shown(key)}"
        if key in metadata:
            raise cursor.error(f"corrupt: {what} is there twice")
        value_type = cursor.u32(f"the type of {what}")
        if value_type == ARRAY:
            value = _skip_array(cursor, what, n_strings_left)
            n_strings_left -= value.count if value.type == STRING else 0
        elif value_type == STRING:
            value = Value(STRING, None, cursor.position)
            cursor.require(cursor.u64(f"the length of {what}"), what)
        elif value_type in SCALARS:
            width = SCALARS[value_type][1].itemsize
            value = Value(value_type, None, cursor.require(width, what))
        else:
            raise cursor.error(f"corrupt: {what} has the unknown value type {value_type}")
        metadata[key] = value
    return metadata


def _skip_array(cursor, what, n_strings_left):
    item_type = cursor.u32(f"the item type of {what}")
    count = cursor.u64(f"the number of items of {what}")
    value = Value(item_type, count, cursor.position)
    if item_type == STRING:
        if count > n_strings_left:
            raise cursor.error(
                f"corrupt: {what} claims {count} strings, at most {MAX_ARRAY_STRINGS} are allowed"
            )
        cursor.skip_strings(count, what)
    elif item_type in SCALARS:
        cursor.require(count * SCALARS[item_type][1].itemsize, f"{what} ({count} items)")
    elif item_type == ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which llama.cpp and kqcap do not read")
    else:
        raise cursor.error(f"corrupt: {what} has the unknown item type {item_type}")
    return value


def decode(path: str, buffer: Buffer, key: str, value: Value) -> Any:
    """The Python value of one metadata entry.

    Returns
    -------
    int, float, bool, str, tuple of str, or numpy.ndarray
        Number arrays are read-only views into the file.
    """
    cursor = Cursor(path, buffer, value.offset)
    what = f"metadata {shown(key)}"
    if value.type == STRING:
        if value.count is None:
            return cursor.text(what)
        return _decode_strings(cursor, value.count, what)
    dtype = SCALARS[value.type][1]
    count = 1 if value.count is None else value.count
    if count == 0:
        return np.empty(0, dtype)
    if dtype == np.bool_:  # any byte but 0 counts as true; NumPy wants exactly 0 or 1
        items = np.frombuffer(buffer, np.uint8, count, value.offset) != 0
    else:
        items = np.frombuffer(buffer, dtype, count, value.offset)
    return items[0].item() if value.count is None else items


def _decode_strings(cursor, count, what):
    strings = []
    buffer, position = cursor.buffer, cursor.position  # read_header has walked them: in bounds
    for index in range(count):
        start = position + 8
        position = start + _U64.unpack_from(buffer, position)[0]
        try:
            strings.append(str(buffer[start:position], "utf-8"))
        except UnicodeDecodeError as bad:
            raise cursor.error(
                f"corrupt: item {index} of {what} is not valid UTF-8 ({bad.reason})"
            ) from None
    return tuple(strings)


def _alignment(cursor, metadata):
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.count is not None or SCALARS.get(value.type, ("",))[0] != "u32":
        raise cursor.error("corrupt: metadata 'general.alignment' is not a u32")
    alignment = decode(cursor.path, cursor.buffer, "general.alignment", value)
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.error(f"corrupt: general.alignment is {alignment}, not a power of two")
    return alignment


class _Row(NamedTuple):
    """A tensor's row of the header as it stands there; `offset` counts from the data's start."""

    name: str
    ne: tuple
    type_number: int
    offset: int


def _read_tensor_row(cursor, index):
    name = cursor.text(f"the name of tensor {index}", MAX_KEY_BYTES)
    what = f"tensor {shown(name)}"
    n_dims = cursor.u32(f"the number of dimensions of {what}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"corrupt: {what} has {n_dims} dimensions; up to {MAX_DIMS} are allowed")
    ne = struct.unpack_from(
        f"<{n_dims}Q", cursor.buffer, cursor.require(8 * n_dims, f"the shape of {what}")
    )
    return _Row(name, ne, cursor.u32(f"the type of {what}"), cursor.u64(f"the offset of {what}"))


def _tensor_info(cursor, row, data_start, alignment):
    what = f"tensor {shown(row.name)}"
    shape = row.ne[::-1]
    if math.prod(max(n, 1) for n in shape) > MAX_WEIGHTS:
        raise cursor.error(f"corrupt: {what} has the shape {shape}, more than 2**60 weights")
    if row.offset % alignment:
        raise cursor.error(
            f"corrupt: {what} lies at offset {row.offset}, not a multiple of the alignment {alignment}"
        )
    n_weights = math.prod(shape)
    qtype, n_bytes = _type_and_bytes(cursor, what, row.type_number, shape, n_weights)
    start = data_start + row.offset
    # Of an unknown type the first byte is there, and `_settle_sizes` finds where it ends.
    end = start + (1 if n_bytes is None else n_bytes)
    # An empty tensor lies where the next one would: behind the padding, which the file may lack.
    if end > (cursor.size if n_weights else _rounded_up(cursor.size, alignment)):
        raise cursor.error(
            f"truncated or corrupt: {what} takes bytes {start} to {end}, the file ends at {cursor.size}"
        )
    known = n_bytes is not None
    return TensorInfo(row.name, qtype, shape, cursor.path, start, n_bytes if known else 1, known)


def _type_and_bytes(cursor, what, type_number, shape, n_weights):
    """(type, bytes) of a tensor; of a type that the gguf package does not know (number, None)."""
    try:
        qtype = GGMLQuantizationType(type_number)
        block_weights, block_bytes = GGML_QUANT_SIZES[qtype]
    except (ValueError, KeyError):
        qtype = type_number
        if qtype not in FORMATS:
            return qtype, None if n_weights else 0
        block_weights, block_bytes = FORMATS[qtype].block_weights, FORMATS[qtype].block_bytes
    columns = shape[-1] if shape else 1
    if columns % block_weights:
        raise cursor.error(
            f"corrupt: {what} has {columns} columns, not a multiple of the "
            f"{block_weights} weights of a {type_name(qtype)} block"
        )
    return qtype, n_weights // block_weights * block_bytes


def _settle_sizes(cursor, tensors):
    """Refuse tensors that share a byte; bound a size that is unknown by what lies behind it."""
    ordered = sorted(
        (info for info in tensors.values() if info.n_bytes), key=lambda info: info.offset
    )
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.n_bytes > after.offset:
            raise cursor.error(
                f"corrupt: tensors {shown(before.name)} and {shown(after.name)} overlap "
                f"at offset {after.offset}"
            )
    ends = [info.offset for info in ordered[1:]] + [cursor.size]
    for info, end in zip(ordered, ends, strict=False):
        if not info.size_known:
            tensors[info.name] = replace(info, n_bytes=end - info.offset)


def _rounded_up(position, alignment):
    return -(-position // alignment) * alignment
