"""K and V as attention reads them: sources, and what a plan must know of one.

Dense float32, float16 and bfloat16 arrays are handled here. Anything else takes part by a method
``kv_source()`` that returns a `KVSource`; what it is decoded from, and how, is its own affair.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from .. import checks, devices
from ..shapes import dtype_name

DENSE_DTYPES = checks.FLOATS
_DENSE_WORDS = ", ".join(DENSE_DTYPES)


@dataclasses.dataclass(frozen=True)
class KVType:
    """What a plan knows of a source's values. Hashable: plans are remembered by it.

    Attributes
    ----------
    name : str
        What a plan shows: "float32", "Q8_0", ...
    block_weights : int
        Weights in one block, 1 where each stands alone; a head's size is a multiple of it, and a range
        of columns starts at one.
    """

    name: str
    block_weights: int = 1
    # Whether a chunk of heads and keys is decoded as a whole, before the products, and not row by row
    # wherever a kernel is: for sources whose decoding costs more than reading, such as MLA's latents.
    in_chunks: ClassVar[bool] = False

    @property
    def is_dense(self) -> bool:
        """Whether the values lie in memory as floats."""
        return self.name in DENSE_DTYPES

    def scratch_bytes(self, device: str, heads: int, keys: int, dtype: str = "float32") -> int:
        """Bytes that reading so many K/V heads, chunks of so many keys of a dtype, takes besides the chunk itself."""
        return 0


class KVSource(Protocol):
    """K or V, (n_head_kv, n_kv, d), as attention reads it.

    Attributes
    ----------
    shape : tuple of int
        (n_head_kv, n_kv, d).
    type : KVType
    arrays : tuple of arrays
        All that is read, on the device of the call.
    data : array
        Of a source that is read row by row (not ``type.in_chunks``): its first two axes are heads and
        keys, in any strides, and the last one, a key's bytes, is contiguous.
    fill_address : int
        On the CPU, of a source read row by row: address of a compiled C function
        ``void fill(uint8 *source, int64 row_stride, int64 n_rows, int64 n_columns, float *out, int64 stride)``
        that decodes `n_rows` rows of `n_columns` values, `row_stride` bytes apart, into `out`, `stride`
        floats apart (pointers may be declared int64). It writes nothing else and needs no memory.
    """

    shape: tuple
    type: KVType

    @property
    def arrays(self) -> tuple: ...


class DecodedSource(KVSource, Protocol):
    """A source that is not dense: its values come by a reader."""

    def reader(
        self, device: Any, heads: slice, scratch: Any = None, n_threads: int = 1
    ) -> Callable[[slice, Any], None]:
        """``read(keys, out)``, which decodes ``[heads, keys]``, in the order of the device's other work.

        Parameters
        ----------
        device : Device
            The source's.
        heads : slice
            With start and stop, as `keys`.
        scratch : array of float32, 1-D
            At least ``type.scratch_bytes(device.name, heads, most keys of a chunk, dtype of `out`)``, the reader's own
            as long as it is used; None where that is 0.
        n_threads : int
            Of the call, on the CPU.

        `out`: array, (heads, keys, d), float32 on the CPU, float32, float16 or bfloat16 on other devices; its
        last axis is contiguous. On the CPU rows are followed by memory up to the next multiple of
        `CHUNK_PADDING` values, which may be written to.
        """
        ...


# Rows of a decoded chunk are so many values apart, or a multiple: decoders write whole vectors.
CHUNK_PADDING = 32


def padded_width(width: int) -> int:
    """From one row of a decoded chunk to the next, in values; see `CHUNK_PADDING`."""
    return -(-width // CHUNK_PADDING) * CHUNK_PADDING


_types = {name: KVType(name) for name in DENSE_DTYPES}


def register_kv_type(kv_type: KVType) -> None:
    """Let plans be made for a type by its name, as `quant` does for the formats it brings."""
    _types[kv_type.name] = kv_type


def kv_type_of(kind: Any, argument: str = "kv_dtype") -> KVType:
    """The `KVType` of a dtype, of a registered name, or the one given.

    Raises
    ------
    TypeError, ValueError
        It is none; names the argument and lists those there are.
    """
    if isinstance(kind, KVType):
        return kind
    name = dtype_name(kind, argument)
    if name not in _types:
        raise ValueError(f"{argument}: expected one of {', '.join(_types)}; got {name!r}")
    return _types[name]


class DenseSource:
    """A float32, float16 or bfloat16 array as a source.

    Parameters
    ----------
    array : array, (n_head_kv, n_kv, d)
        Contiguous last axis, any other strides, zero and negative ones too.
    name : str
        The argument's name, for error messages.
    """

    def __init__(self, array: Any, name: str) -> None:
        # The name does not tell the byte order.
        if dtype_name(array.dtype) not in DENSE_DTYPES or not array.dtype.isnative:
            raise TypeError(
                f"{name}: expected one of {_DENSE_WORDS} or a QuantTensor of 32-weight "
                f"blocks, got {array.dtype}; try {name}.astype('float32')"
            )
        check_rows(array, name)
        self.data, self.shape, self.type = array, array.shape, _types[dtype_name(array.dtype)]

    @property
    def arrays(self) -> tuple:
        return (self.data,)

    @property
    def fill_address(self) -> int:
        from ..cpu import kv_fill  # compiles kernels: only when one is needed

        return kv_fill.DENSE[self.type.name].address


def check_rows(array: Any, name: str) -> None:
    """Raise unless `array` has three axes and a contiguous last one."""
    if array.ndim != 3:
        raise ValueError(f"{name}: expected 3 axes (heads, keys, head size), got {array.shape}")
    checks.check_last_axis(array, name)


def as_kv_source(x: Any, name: str) -> KVSource:
    """`x` as a source; raises TypeError naming argument `name` if it cannot be one."""
    if hasattr(x, "kv_source"):
        return x.kv_source()
    try:
        devices.of_array(x, name)
    except TypeError as error:
        kind = f"{name}: expected a NumPy array or a QuantTensor, or an array on a device"
        raise TypeError(f"{kind}, got {type(x).__name__}") from error
    return DenseSource(x, name)
