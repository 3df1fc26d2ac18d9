"""K and V as attention reads them: rows that are decoded into scratch, a chunk of keys at a time.

Dense float32, float16 and bfloat16 arrays are handled here. Anything else, quant's QuantTensor
for one, takes part by a method ``kv_source()`` that returns an object with

``shape``
    (n_head_kv, n_kv, d).
``dtype_name``
    What a plan shows: "float32", "Q8_0", ...
``block_weights``
    Weights in one block, 1 where each stands alone; a range of columns starts at a multiple of it.
``data``
    A NumPy array whose first two axes are heads and keys, in any strides; the last axis, one
    key's bytes, is contiguous.
``fill_address``
    Address of a compiled C function
    ``void fill(uint8 *source, int64 row_stride, int64 n_rows, int64 n_columns, float *out, int64 stride)``
    that decodes `n_rows` rows of `n_columns` values, `row_stride` bytes apart, into `out`, `stride`
    floats apart (pointers may be declared int64). It writes nothing else and needs no memory.
``decode(device, heads, keys, out)``
    On devices that launch kernels: decodes ``data[heads, keys]`` (slices) into `out`, a C-contiguous
    array (heads, keys, d) of float32, float16 or bfloat16 on `device`, in the order of its other work.
"""

from .. import devices
from .plan import DENSE_DTYPES, dtype_name


class DenseSource:
    """A float32, float16 or bfloat16 array as a source.

    Parameters
    ----------
    array : array, (n_head_kv, n_kv, d)
        Contiguous last axis, any other strides, zero and negative ones too.
    name : str
        The argument's name, for error messages.
    """

    block_weights = 1

    def __init__(self, array, name):
        self.data, self.shape, self.dtype_name = array, array.shape, dtype_name(array.dtype)
        # The name does not tell the byte order.
        if self.dtype_name not in DENSE_DTYPES or not array.dtype.isnative:
            raise TypeError(
                f"{name}: expected one of {', '.join(DENSE_DTYPES)} or a QuantTensor of 32-weight "
                f"blocks, got {array.dtype}; try {name}.astype('float32')"
            )
        check_rows(array, name)

    @property
    def fill_address(self):
        from ..cpu import kv_fill  # compiles kernels: only when one is needed

        return kv_fill.DENSE[self.dtype_name].address


def check_rows(array, name):
    """Raise unless `array` has three axes and a contiguous last one."""
    if array.ndim != 3:
        raise ValueError(f"{name}: expected 3 axes (heads, keys, head size), got {array.shape}")
    if array.size and array.shape[2] > 1 and array.strides[2] != array.itemsize:
        raise ValueError(
            f"{name}: the last axis must be contiguous, got strides {array.strides} bytes for "
            f"shape {array.shape}; numpy.ascontiguousarray({name}) would do"
        )


def as_kv_source(x, name):
    """`x` as a source; raises TypeError naming argument `name` if it cannot be one."""
    if hasattr(x, "kv_source"):
        return x.kv_source()
    try:
        devices.of_array(x, name)
    except TypeError as error:
        kind = f"{name}: expected a NumPy array or a QuantTensor, or an array on a device"
        raise TypeError(f"{kind}, got {type(x).__name__}") from error
    return DenseSource(x, name)
