"""Quantised K and V for attention: the quantised side of lowlevel/attention/kv_source.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lowlevel.attention.kv_source import KVType, register_kv_type

from .formats import KV_FORMATS

if TYPE_CHECKING:
    from lowlevel.arrays import Array
    from lowlevel.devices import Device

    from .formats import BlockFormat

KV_TYPES = {row.name: KVType(row.name, row.block_weights) for row in KV_FORMATS}
for _kv_type in KV_TYPES.values():
    register_kv_type(_kv_type)


class QuantSource:
    """A tensor of 32-weight blocks, (n_head_kv, n_kv, d), as attention reads it.

    Attributes
    ----------
    shape : tuple of int
    type : KVType
        Of the format's name.
    data : array of uint8, (n_head_kv, n_kv, row bytes)
    """

    def __init__(self, block: BlockFormat, data: Array, shape: tuple[int, ...]) -> None:
        self.shape, self.data, self.type = shape, data, KV_TYPES[block.name]
        self._format = block

    @property
    def arrays(self) -> tuple:
        return (self.data,)

    @property
    def fill_address(self) -> int:
        """Address of the compiled function that decodes rows; compiled when first asked for."""
        from .cpu.dequantize.decoders import DECODERS

        return DECODERS[self.type.name].fill.address

    def reader(
        self, device: Device, heads: slice, scratch: Any = None, n_threads: int = 1
    ) -> Callable[[slice, Any], None]:
        """``read(keys, out)`` on a device that runs CUDA kernels; see `KVSource`."""
        from .gpu.dequantize.run import decode_blocks

        def read(keys, out):
            decode_blocks(self._format, self.data[heads, keys], out, device)

        return read
