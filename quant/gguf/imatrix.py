"""Importance matrices out of llama.cpp's files (llama-imatrix): how large the activations were that met a weight's columns.

Both forms are read: GGUF, with a tensor of sums of squares and one of counts for each weight, and the older binary
form. Files are not trusted: nothing is allocated on their word, and whatever is wrong is a `ModelFileError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .header import MAGIC, MAX_ENTRIES, MAX_KEY_BYTES, Cursor, ModelFileError, shown
from .model_file import ModelFile, map_file

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUMS, _COUNTS = ".in_sum2", ".counts"


class Imatrix(Mapping[str, np.ndarray]):
    """Mean squares of activations by the weight's name.

    ``imatrix[name]`` is float32, (matrices, columns), read-only; the older form does not say how many matrices
    (experts) there are: (1, all columns of all of them). See `of`.

    Parameters
    ----------
    path : str or os.PathLike
        As ``llama-imatrix -o`` writes it: GGUF, or the older form (imatrix.dat).

    Raises
    ------
    OSError, ModelFileError
        The file cannot be read, or is no importance matrix.

    Attributes
    ----------
    path : str
    datasets : tuple of str
        What text it was made with, as the file says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        buffer = map_file(self.path)
        self.datasets: tuple[str, ...]
        self._means: dict[str, np.ndarray]
        if buffer[: len(MAGIC)] == MAGIC:
            self._means, self.datasets = _read_gguf(self.path)
        else:
            self._means, self.datasets = _read_old(Cursor(self.path, buffer))
        for name, means in self._means.items():
            if not (np.isfinite(means).all() and (means >= 0).all()):
                raise ModelFileError(
                    f"{self.path}: {shown(name)} has values that are negative or not finite"
                )
            means.flags.writeable = False

    def __getitem__(self, name: str) -> np.ndarray:
        return self._means[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)

    def of(self, name: str, shape: Sequence[int]) -> np.ndarray | None:
        """What `quant.quantize` takes as `imatrix` for a weight; None where the file has nothing on it.

        Parameters
        ----------
        name : str
            Of the weight, such as "blk.0.attn_q.weight".
        shape : sequence of int
            The weight's, (..., rows, columns).

        Raises
        ------
        ValueError
            The file's entry is of a weight of another shape.
        """
        means = self._means.get(name)
        if means is None:
            return None
        *leading, columns = *shape[:-2], shape[-1]
        if means.size == columns:
            return means.reshape(columns)
        if means.size == int(np.prod(leading, dtype=np.int64)) * columns:
            return means.reshape(*leading, columns)
        raise ValueError(
            f"{self.path}: {shown(name)} has {means.size} values; a weight {tuple(shape)} needs "
            f"{columns}, or as many for each matrix"
        )

    def __repr__(self) -> str:
        return f"<Imatrix {self.path}: {len(self)} weights>"


def _read_gguf(path):
    with ModelFile(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise ModelFileError(
                f"{path}: a GGUF file whose general.type is {shown(file.metadata.get('general.type'))}, "
                "no importance matrix ('imatrix')"
            )
        datasets = file.metadata.get("imatrix.datasets", ())
        if not isinstance(datasets, tuple):
            raise ModelFileError(f"{path}: metadata 'imatrix.datasets' is no list of names")
        means = {}
        for tensor in file:
            if not tensor.endswith(_SUMS):
                continue
            name = tensor.removesuffix(_SUMS)
            sums, counts = _floats(file, tensor), _floats(file, name + _COUNTS)
            sums = sums.reshape(-1, sums.shape[-1] if sums.size else 1)
            if counts.size != len(sums):
                raise ModelFileError(
                    f"{path}: {shown(name)} has sums of {len(sums)} matrices and {counts.size} counts"
                )
            means[name] = _mean(sums, counts.reshape(-1, 1))
    return means, datasets


def _floats(file, name):
    if name not in file:
        raise ModelFileError(f"{file.paths[0]}: tensor {shown(name)} is missing")
    info = file.tensor_info(name)
    if info.type_name != "F32":
        raise ModelFileError(f"{file.paths[0]}: tensor {shown(name)} is {info.type_name}, not F32")
    return file.tensor_bytes(name).view("<f4").reshape(info.shape or (1,))


def _mean(sums, counts):
    """Sums over counts; 1 where nothing was counted: such columns count alike."""
    with np.errstate(all="ignore"):  # what is not finite is found by who called
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.float32(1)).astype(
            np.float32
        )


def _read_old(cursor):
    """Entries (name, how often it was summed, the sums), then the number of chunks and the text's name."""
    n_entries = _count(cursor, "the number of entries", MAX_ENTRIES)
    means = {}
    for index in range(n_entries):
        n_bytes = _count(cursor, f"the length of the name of entry {index}", MAX_KEY_BYTES)
        start = cursor.require(n_bytes, f"the name of entry {index}")
        try:
            name = cursor.buffer[start : start + n_bytes].decode()
        except UnicodeDecodeError:
            raise cursor.error(f"corrupt: the name of entry {index} is not valid UTF-8") from None
        if name in means:
            raise cursor.error(f"corrupt: two entries are named {shown(name)}")
        n_sums = cursor.i32(f"the count of {shown(name)}")
        n_values = _count(cursor, f"the number of values of {shown(name)}", 2**31 - 1)
        start = cursor.require(4 * n_values, f"the values of {shown(name)}")
        sums = np.frombuffer(cursor.buffer, "<f4", n_values, start)
        means[name] = (sums / np.float32(max(1, n_sums))).reshape(1, -1)
    datasets = ()
    if cursor.position < cursor.size:  # older still: nothing follows
        cursor.i32("the number of chunks")
        n_bytes = _count(cursor, "the length of the text's name", MAX_KEY_BYTES)
        start = cursor.require(n_bytes, "the text's name")
        datasets = (cursor.buffer[start : start + n_bytes].decode(errors="replace"),)
    if cursor.position < cursor.size:
        raise cursor.error(
            f"no importance matrix: {cursor.size - cursor.position} bytes follow its end"
        )
    return means, datasets


def _count(cursor, what, most):
    number = cursor.i32(what)
    if not 0 < number <= most:
        raise cursor.error(
            f"no importance matrix: {what} is {number}, expected 1 to {most}, and it is no GGUF file either"
        )
    return number
