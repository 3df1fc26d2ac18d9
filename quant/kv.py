"""Quantised K and V for attention: the quantised side of lowlevel/attention/kv_source.py."""

from lowlevel.attention.kv_source import DenseSource

from .formats import KV_FORMATS


class QuantSource:
    """A tensor of 32-weight blocks, (n_head_kv, n_kv, d), as attention reads it.

    Attributes
    ----------
    shape : tuple of int
    dtype_name : str
        The format's name.
    block_weights : int
    data : array of uint8, (n_head_kv, n_kv, row bytes)
    """

    def __init__(self, t):
        self.shape, self.data, self.dtype_name = t.shape, t.data, t.format.name
        self._format, self.block_weights = t.format, t.format.block_weights

    @property
    def fill_address(self):
        """Address of the compiled function that decodes rows; compiled when first asked for."""
        from .cpu.dequantize.decoders import DECODERS

        return DECODERS[self.dtype_name].fill.address

    def decode(self, device, heads, keys, out):
        """Decode ``data[heads, keys]`` into `out`, both on `device`, a `KernelDevice`."""
        from .gpu.dequantize import decode_blocks

        decode_blocks(self._format, self.data[heads, keys], out, device)


def kv_source(t):
    """The source of a `QuantTensor`; see `QuantTensor.kv_source`."""
    if len(t.shape) != 3:
        raise ValueError(
            f"K/V: expected (n_head_kv, n_kv, d), got {t.format.name} of shape {t.shape}; "
            "QuantTensor.reshape can split rows into heads"
        )
    if t.format.is_float:
        return DenseSource(t.as_array(), t.format.name)
    if t.format not in KV_FORMATS:
        raise ValueError(
            f"K/V: {t.format.name} packs {t.format.block_weights} weights in a block, which does "
            "not divide head sizes such as 64, 128 or 192; types that work for K and V: "
            f"{', '.join(row.name for row in KV_FORMATS)}, F32, F16, BF16"
        )
    return QuantSource(t)
