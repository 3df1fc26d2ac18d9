"""QuantTensor: the bytes of a GGUF weight with its type and shape."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from gguf import GGMLQuantizationType

from lowlevel import arrays, checks, devices
from lowlevel.attention.kv_source import DenseSource

from .formats import BlockFormat, block_format
from .kv import KV_TYPES, QuantSource

if TYPE_CHECKING:
    from lowlevel.arrays import Array
    from lowlevel.attention.kv_source import KVSource
    from lowlevel.pool import Pool

QType: TypeAlias = GGMLQuantizationType | str | BlockFormat


class QuantTensor:
    """A weight in one of GGUF's block formats: a typed view of bytes, never a copy of them.

    Parameters
    ----------
    data : array of uint8, (..., rows, row bytes)
        On any device. Any strides with a contiguous last axis; read-only memory (a mapped file)
        will do. A flat array of all bytes is taken too.
    qtype : gguf.GGMLQuantizationType or str
        The block format or its name; F32, F16 and BF16 are formats too.
    shape : sequence of int, (..., rows, columns)
        In weights, slowest axis first. Leading axes are experts or heads; (columns,) alone is a
        single row.

    Raises
    ------
    ValueError
        An unsupported type, columns that do not fill whole blocks, or data of another size.
    TypeError
        Data that is not a uint8 array.

    Attributes
    ----------
    data, qtype, shape
        As given, normalised.
    format : BlockFormat
    """

    __slots__ = ("data", "format", "shape")

    def __init__(self, data: Array, qtype: QType, shape: Sequence[int]) -> None:
        self.format = block_format(qtype)
        self.shape = _checked_shape(shape)
        self.data = _checked_data(data, self.format, self.shape)

    @property
    def qtype(self) -> GGMLQuantizationType | int:
        return self.format.qtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return _product(self.shape)

    @property
    def n_rows(self) -> int:
        """Number of rows, over all leading axes."""
        return _product(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return self.data.shape[-1]

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks (gaps between rows are not counted)."""
        return _product(self.data.shape)

    @property
    def device(self) -> str:
        """Where the bytes lie: "cpu", "cuda:N" or "cudasim:N"."""
        return devices.of_array(self.data, "data").name

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<QuantTensor {self.format.name} {self.shape}, {self.n_bytes} bytes, {self.device}>"

    def __getitem__(self, index: Any) -> QuantTensor:
        """A view of some experts, heads or rows: ints, slices and ``...`` on all axes but the last."""
        items = _expanded(index, self.ndim)
        if len(items) == self.ndim and items.pop() != slice(None):
            raise IndexError(
                f"index {index!r}: the last axis (columns) is packed in blocks and cannot be "
                f"indexed; shape is {self.shape}"
            )
        leading = tuple(items)
        # A zero-stride stand-in gives the new shape without touching the data.
        shape = np.broadcast_to(np.uint8(0), self.shape)[leading].shape
        return QuantTensor(self.data[leading], self.format, shape)

    def column_range(self, start: int, stop: int) -> QuantTensor:
        """A view of the columns from `start` to `stop`, of every row: whole blocks.

        Raises
        ------
        ValueError
            No range of columns, or one that begins or ends inside a block.
        """
        block = self.format.block_weights
        if not 0 <= start <= stop <= self.columns or start % block or stop % block:
            raise ValueError(
                f"start, stop: {self.format.name} packs {block} columns in a block, and there are {self.columns}; "
                f"got {start} to {stop}"
            )
        data = self.data[..., self.format.row_bytes(start) : self.format.row_bytes(stop)]
        return QuantTensor(data, self.format, (*self.shape[:-1], stop - start))

    def reshape(self, *shape: int | Sequence[int]) -> QuantTensor:
        """A view with other leading axes, say (heads * rows, columns) as (heads, rows, columns).

        Raises
        ------
        ValueError
            Other columns, another number of weights, or strides that would force a copy.
        """
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            shape = shape[0]
        shape = _checked_shape(shape)
        if shape[-1] != self.shape[-1] or _product(shape) != self.size:
            raise ValueError(
                f"shape: {shape} does not keep the columns and weights of {self.shape}"
            )
        data = self.data.reshape(*shape[:-1], self.row_bytes)
        device = devices.of_array(self.data, "data")
        if data.size and device.address(data) != device.address(self.data):
            raise ValueError(f"shape: {shape} would need a copy of this strided tensor")
        return QuantTensor(data, self.format, shape)

    def as_array(self) -> Array:
        """The weights of an F32, F16 or BF16 tensor as an array: a view, shape as the tensor's.

        Raises
        ------
        ValueError
            A quantised tensor, or BF16 without ml_dtypes: `quant.dequantize` serves those.
        """
        return self.data.view(_array_dtype(self.format))

    def kv_source(self) -> KVSource:
        """This tensor, (n_head_kv, n_kv, d), as K or V of attention: see lowlevel/attention/kv_source.py.

        Raises
        ------
        ValueError
            Not three axes, or a format in super-blocks of 256 weights.
        """
        name = self.format.name
        if self.ndim != 3:
            raise ValueError(
                f"K/V: expected (n_head_kv, n_kv, d), got {name} of shape {self.shape}; "
                "QuantTensor.reshape can split rows into heads"
            )
        if self.format.is_float:
            return DenseSource(self.as_array(), name)
        if name not in KV_TYPES:
            raise ValueError(
                f"K/V: {name} packs {self.format.block_weights} weights in a block, which does "
                "not divide head sizes such as 64, 128 or 192; types that work for K and V: "
                f"{', '.join(KV_TYPES)}, F32, F16, BF16"
            )
        return QuantSource(self.format, self.data, self.shape)

    def to(self, device: str, pool: Pool | None = None) -> QuantTensor:
        """This tensor on a device.

        Parameters
        ----------
        device : str
            "cpu", "cuda:N" or "cudasim:N".
        pool : Pool, optional
            On that device: the copy lies in it, and is given back by ``pool.free(tensor.data)``.

        Returns
        -------
        QuantTensor
            A copy of its bytes; without `pool` the tensor itself if it is there already.

        Raises
        ------
        TypeError
            `pool` is of another device.
        BudgetError
            `pool` has no room for ``n_bytes``.
        """
        name = devices.canonical_name(device)
        if pool is None:
            if name == self.device:
                return self
            return QuantTensor(arrays.asarray(self.data, device), self.format, self.shape)
        checks.check_pool(pool, devices.get(name))
        data = pool.empty(self.data.shape, "uint8", tag="weights")
        try:
            if name == self.device:
                devices.get(name).copy(data, self.data)
            else:
                devices.get(name).upload(data, arrays.asnumpy(self.data))
        except BaseException:
            pool.free(data)
            raise
        return QuantTensor(data, self.format, self.shape)


def check_tensor(t: object) -> None:
    """Raise TypeError, which says what it is, for a `t` that is no `QuantTensor`."""
    if isinstance(t, QuantTensor):
        return
    given = type(t).__name__
    if hasattr(t, "dtype"):
        given = f"an array of {t.dtype}, no weight in one of GGUF's formats"
    raise TypeError(f"t: expected a QuantTensor, got {given}")


def _product(sizes):
    result = 1
    for size in sizes:
        result *= size
    return result


def _checked_shape(shape):
    """`shape` as a tuple of ints, at least one, none negative."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape: expected a sequence of ints, got {shape!r}") from None
    if not sizes or min(sizes) < 0:
        raise ValueError(f"shape: expected (..., rows, columns), none negative; got {sizes}")
    return sizes


def _checked_data(data, block, shape):
    """`data` with one axis for each of `shape`, the last one in bytes."""
    expected = (*shape[:-1], block.row_bytes(shape[-1]))
    wanted = f"uint8 of shape {expected} for {block.name} {shape}"
    if getattr(data, "dtype", None) != np.uint8:
        given = f"{data.dtype} array" if hasattr(data, "dtype") else type(data).__name__
        raise TypeError(f"data: expected an array of {wanted}; got {given}")
    # np.memmap and other subclasses are slower to slice
    data = devices.of_array(data, "data").plain(data)
    if data.shape != expected and data.ndim == 1 and data.size == _product(expected):
        if data.strides[0] == 1 or data.size <= 1:
            data = data.reshape(expected)
    if data.shape != expected:
        raise ValueError(f"data: expected {wanted}; got shape {data.shape}")
    if data.size and data.shape[-1] > 1 and data.strides[-1] != 1:
        raise ValueError(
            f"data: the last axis must be contiguous; its stride is {data.strides[-1]}"
        )
    return data


def _expanded(index, ndim):
    """An index as a list of ints and slices, ``...`` replaced by what it stands for."""
    items = list(index) if isinstance(index, tuple) else [index]
    for i, item in enumerate(items):
        if isinstance(item, slice) or item is Ellipsis:
            continue
        if isinstance(item, (bool, np.bool_)) or not hasattr(item, "__index__"):
            raise IndexError(f"index: expected ints, slices or ..., got {item!r}")
        items[i] = operator.index(item)
    n_ellipses = sum(item is Ellipsis for item in items)
    if n_ellipses > 1 or len(items) - n_ellipses > ndim:
        raise IndexError(f"index {index!r}: too many items for {ndim} axes")
    if n_ellipses:
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (ndim - len(items) + 1)
    return items


def _array_dtype(block):
    if block.name in ("F32", "F16"):
        return np.dtype(block.fields[0].dtype)
    if block.name != "BF16":
        raise ValueError(f"as_array: {block.name} is packed in blocks; use quant.dequantize")
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(
            "as_array: NumPy has no bfloat16 and ml_dtypes is not installed; use quant.dequantize"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)
