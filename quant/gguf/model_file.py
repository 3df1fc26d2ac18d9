"""GGUF model files, one file or split in parts: metadata by key, tensors by name, memory-mapped."""

from __future__ import annotations

import builtins
import contextlib
import difflib
import errno
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..formats import FORMATS, supported_names
from ..models.geometry import AttentionGeometry
from ..tensor import QuantTensor
from .header import ModelFileError, decode, read_header, shown
from .other_types import ARRAY_DTYPES, described

if TYPE_CHECKING:
    from typing import Any

    from .header import Buffer, TensorInfo, Value


_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open(path: str | os.PathLike[str]) -> ModelFile:
    """Open a GGUF model file.

    Parameters
    ----------
    path : str or os.PathLike
        The file, or any part (NAME-00002-of-00030.gguf) of a split one; the others lie beside it.

    Returns
    -------
    ModelFile

    Raises
    ------
    FileNotFoundError
        The file, or a part of it, is not there; the message names it.
    ModelFileError
        A ValueError: not GGUF, truncated, corrupt, or parts that do not belong together.
    """
    return ModelFile(path)


class Metadata(Mapping):
    """Metadata by key. Values are decoded when asked for: numbers, bool, str, tuples of str for
    string arrays, read-only NumPy arrays for number arrays."""

    def __init__(self, path: str, buffer: Buffer, values: Mapping[str, Value]) -> None:
        self._path = path
        self._buffer = buffer
        self._values = values
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            if key not in self._values:
                raise KeyError(_not_found(self._path, "metadata key", key, self._values))
            if self._buffer is None:
                raise ValueError(f"{self._path}: the model file is closed")
            self._decoded[key] = decode(self._path, self._buffer, key, self._values[key])
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Metadata: {len(self)} keys of {self._path}>"


class ModelFile(Mapping):
    """An open model file: a mapping from tensor names to `QuantTensor`. See `open`.

    Tensors of plain numbers (F64, I8, I16, I32, I64) are read-only NumPy arrays. One of a type that
    is not supported raises `ModelFileError` when it is asked for; `tensor_info` and `tensor_bytes`
    serve those as well. A tensor without axes is a row of one weight.

    Tensors are views into the mapped file: nothing is read before it is used, and they stay valid
    after `close`. (A file that somebody cuts short while it is mapped ends the process by SIGBUS
    when the missing bytes are touched, as with every mapped file.)

    Attributes
    ----------
    metadata : Metadata
        Of a split model: the first part's.
    paths : tuple of str
        The file, or its parts in order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            path = os.fsdecode(path)
        except TypeError:
            raise TypeError(
                f"path: expected a str or os.PathLike, got {type(path).__name__}"
            ) from None
        self._parts: dict[str, mmap.mmap] = {}  # path -> mmap
        self._tensors: dict[str, TensorInfo] = {}  # name -> TensorInfo
        named = _Part(path)
        self.paths = (path,)
        n_parts = named.n_parts
        parts = [named]
        if n_parts > 1 or _PART_NAME.fullmatch(path):
            self.paths = _part_paths(named, n_parts)
            parts = [named if other == path else _Part(other) for other in self.paths]
            _check_parts(parts)
        for part in parts:
            self._add(part)
        self.metadata = parts[0].metadata

    def _add(self, part):
        for name, info in part.header.tensors.items():
            if name in self._tensors:
                raise ModelFileError(
                    f"{part.path}: tensor {shown(name)} is in {self._tensors[name].path} too"
                )
            self._tensors[name] = info
        self._parts[part.path] = part.buffer

    def __getitem__(self, name: str) -> Any:
        info = self.tensor_info(name)
        if info.qtype not in FORMATS and info.qtype not in ARRAY_DTYPES:
            raise ModelFileError(
                f"{info.path}: tensor {shown(info.name)} has the type {described(info.qtype)}, which "
                f"is not supported; supported: {supported_names()}"
            )
        data = self.tensor_bytes(name)
        if info.qtype in ARRAY_DTYPES:
            return data.view(ARRAY_DTYPES[info.qtype]).reshape(info.shape)
        return QuantTensor(data, FORMATS[info.qtype], info.shape or (1,))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # Two open files are equal only if they are the same object: comparing tensors would read all.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def tensor_info(self, name: str) -> TensorInfo:
        """`TensorInfo` (qtype, shape, path, offset, n_bytes) of a tensor, of any type; reads nothing.

        Raises
        ------
        KeyError
            No tensor has this name; the message suggests near ones.
        """
        try:
            return self._tensors[name]
        except (KeyError, TypeError):
            raise KeyError(_not_found(self.paths[0], "tensor", name, self._tensors)) from None

    def tensor_bytes(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any type, uint8 and read-only: `tensor_info(name).n_bytes`."""
        info = self.tensor_info(name)
        if not self._parts:
            raise ValueError(f"{self.paths[0]}: the model file is closed")
        if not info.n_bytes:  # may lie behind the last byte, where NumPy sees no buffer
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(self._parts[info.path], np.uint8, info.n_bytes, info.offset)

    @property
    def n_bytes_by_type(self) -> dict[str, int]:
        """Bytes of all tensors by type name, largest first. See `TensorInfo.n_bytes`."""
        totals: dict[str, int] = {}
        for info in self._tensors.values():
            totals[info.type_name] = totals.get(info.type_name, 0) + info.n_bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(self.n_bytes_by_type.values())

    @property
    def attention(self) -> AttentionGeometry:
        """The `AttentionGeometry` that the metadata describes.

        Raises
        ------
        ModelFileError
            A key is missing or makes no sense; the message names it.
        """
        try:
            return AttentionGeometry.from_metadata(self.metadata)
        except ModelFileError:
            raise
        except ValueError as bad:
            raise ModelFileError(f"{self.paths[0]}: {bad}") from None

    @property
    def closed(self) -> bool:
        return not self._parts

    def close(self) -> None:
        """Let go of the file. Tensors already taken stay valid; the mapping ends with the last one."""
        self._parts.clear()
        self.metadata._buffer = None

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more parts" if len(self.paths) > 1 else ""
        return f"<ModelFile {self.paths[0]}{more}: {len(self)} tensors, {self.n_bytes} bytes>"


def map_file(path: str) -> mmap.mmap:
    """The whole file, mapped read-only."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ModelFileError(f"{path}: {kind}; give a GGUF file, or one part of a split one")
    with builtins.open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelFileError(f"{path}: an empty file, not GGUF")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _ask_for_large_pages(mapped)
    return mapped


def _ask_for_large_pages(mapped):
    """Where the file is read for the first time, and its file system can: weights are read 15 % faster from them."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


class _Part:
    """One file of a model: mapped, its header parsed."""

    def __init__(self, path):
        self.path = path
        self.buffer = map_file(path)
        self.header = read_header(path, self.buffer)
        self.metadata = Metadata(path, self.buffer, self.header.metadata)

    def number(self, key, default):
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelFileError(f"{self.path}: metadata {key!r} is {shown(value)}, not a count")
        return value

    @property
    def n_parts(self):
        """Of a whole file 1: what llama.cpp has merged says ``split.count`` 0."""
        return self.number("split.count", 1) or 1


def _part_paths(named, n_parts):
    """Paths of all parts, from the name and metadata of one."""
    path = named.path
    match = _PART_NAME.fullmatch(path)
    if match is None:
        part = named.number("split.no", 0) + 1
        raise ModelFileError(
            f"{path}: part {part} of {n_parts} of a split model, but the other parts cannot be found "
            f"from its name; call it NAME-{part:05d}-of-{n_parts:05d}.gguf again"
        )
    if int(match["count"]) != n_parts:
        raise ModelFileError(
            f"{path}: its name says one of {int(match['count'])} parts, its metadata split.count says "
            f"{n_parts}; if it is a whole model by itself, give it another name"
        )
    if not 1 <= int(match["number"]) <= n_parts:
        raise ModelFileError(f"{path}: by its name part {int(match['number'])} of {n_parts}")
    paths = tuple(
        f"{match['stem']}-{number:05d}-of-{n_parts:05d}.gguf" for number in range(1, n_parts + 1)
    )
    for missing in paths:
        if not os.path.exists(missing):
            why = f"a part of the split model {path} ({n_parts} parts) is missing"
            raise FileNotFoundError(errno.ENOENT, why, missing)
    return paths


def _check_parts(parts):
    """Refuse parts whose split.* metadata contradict their names or each other."""
    n_tensors = sum(len(part.header.tensors) for part in parts)
    for index, part in enumerate(parts):
        number, count = part.number("split.no", 0), part.n_parts
        if (number, count) != (index, len(parts)):
            raise ModelFileError(
                f"{part.path}: by its metadata part {number + 1} of {count} (split.no {number}, "
                f"split.count {count}), by its name part {index + 1} of {len(parts)}"
            )
        total = part.number("split.tensors.count", n_tensors)
        if total != n_tensors:
            raise ModelFileError(
                f"{part.path}: split.tensors.count says {total} tensors, "
                f"the {len(parts)} parts hold {n_tensors}"
            )
        _check_same_model(parts[0], part)


def _check_same_model(first, part):
    """Refuse a part whose metadata says another architecture, or other sizes, than the first one's.

    Parts but the first usually say neither.
    """
    architecture = "general.architecture"
    prefix = f"{first.metadata.get(architecture)}."
    for key in part.metadata:
        if key != architecture and not key.startswith(prefix):
            continue
        found, expected = part.metadata[key], first.metadata.get(key)
        if not np.array_equal(found, expected):
            raise ModelFileError(
                f"{part.path}: metadata {shown(key)} is {shown(found)}, in {first.path} it is "
                f"{shown(expected)}: parts of two models"
            )


def _not_found(path, kind, name, names):
    near = difflib.get_close_matches(str(name), names, n=3) if len(str(name)) < 200 else []
    hint = f"; near it: {', '.join(map(shown, near))}" if near else f"; it has {len(names)}"
    return f"{path}: no {kind} {shown(name)}{hint}"
