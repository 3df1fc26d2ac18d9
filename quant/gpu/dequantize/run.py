"""Dequantisation on a device that runs CUDA kernels: finds rows of blocks and launches kernels on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowlevel.axes import join_axes
from lowlevel.gpu.ops.launch import refuse_n_threads
from lowlevel.shapes import dtype_name

from ..constants import constants
from ..instances import DEQUANTIZE, OUTPUTS

if TYPE_CHECKING:
    from ...formats import BlockFormat

DTYPES = tuple(OUTPUTS)
STORE_BYTES = 16  # of a load and of a store
# Blocks in one launch: they are counted in 32 bits.
MAX_BLOCKS = 2**31
# Vectors of 16 bytes that a thread block writes: the kernels' kTileThreads * kTileVectors.
TILE_VECTORS = 256 * 8


def alignment(block: BlockFormat) -> int:
    """What a block's address is a multiple of where the kernels for aligned tensors take it."""
    return STORE_BYTES if block.is_float else constants(block).alignment


def resolve_n_threads(n_threads: int | None, device: Any) -> None:
    """A GPU's launches have threads of their own: ValueError for a number."""
    refuse_n_threads(device, n_threads)


def dequantize(t: Any, out: Any, n_threads: int | None, device: Any) -> None:
    """Decode a QuantTensor into `out`, both checked and on `device`; returns before it is done."""
    decode_blocks(t.format, t.data, out, device)


def decode_blocks(block: BlockFormat, data: Any, out: Any, device: Any) -> None:
    """Decode `data` (..., row bytes), blocks of a `BlockFormat`, into `out` (..., columns)."""
    n_blocks = data.size // block.block_bytes
    axes = join_axes(
        (*data.shape[:-1], data.shape[-1] // block.block_bytes),
        (*data.strides[:-1], block.block_bytes),
        (*out.strides[:-1], block.block_weights * out.itemsize),
    )  # of blocks: (length, stride in data, stride in out), in bytes
    side_by_side = (block.block_bytes, block.block_weights * out.itemsize)
    if not axes or axes[-1][1:] != side_by_side:
        axes.append((1, *side_by_side))
    if len(axes) > 2 or (n_blocks > MAX_BLOCKS and not block.is_float):
        for part, out_part in _halves(block, data, out):
            decode_blocks(block, part, out_part, device)
        return
    n_rows, *strides = axes[0] if len(axes) == 2 else (1, 0, 0)
    _launch(block, data, out, device, n_rows, strides, axes[-1][0])


def _halves(block, data, out):
    """Both arrays cut in two along their first axis that has a middle."""
    axis = next((i for i in range(data.ndim) if data.shape[i] > 1), data.ndim - 1)
    before = (slice(None),) * axis
    if axis < data.ndim - 1:
        cuts = [(data.shape[axis] // 2,) * 2]
    else:
        middle = data.shape[-1] // block.block_bytes // 2
        cuts = [(middle * block.block_bytes, middle * block.block_weights)]
    for cut, out_cut in cuts:
        yield data[before + (slice(cut),)], out[before + (slice(out_cut),)]
        yield data[before + (slice(cut, None),)], out[before + (slice(out_cut, None),)]


def _launch(block, data, out, device, n_rows, strides, row_blocks):
    """One launch over `n_rows` rows, `strides` bytes apart, of `row_blocks` blocks side by side."""
    dtype = dtype_name(out.dtype)
    _, _, vector = OUTPUTS[dtype]
    aligned = not any(
        number % multiple
        for numbers, multiple in (
            ((device.address(data), strides[0]), alignment(block)),
            ((device.address(out), strides[1]), STORE_BYTES),
        )
        for number in numbers
    )
    kernel = DEQUANTIZE[block.name, dtype, aligned]
    arguments = (data, strides[0], out, strides[1] // out.itemsize)
    if block.is_float:
        n_vectors = n_rows * -(-row_blocks // vector)
        device.launch(kernel, -(-n_vectors // kernel.block), (*arguments, row_blocks, n_vectors))
        return
    row_tiles, columns, rows = _tile(
        n_rows, row_blocks, TILE_VECTORS * vector // block.block_weights
    )
    n_tiles = -(-n_rows // rows) * row_tiles
    device.launch(kernel, n_tiles, (*arguments, row_blocks, n_rows, row_tiles, columns, rows))


def _tile(n_rows, row_blocks, most):
    """(tiles in a row, blocks of a row in a tile, its rows) for tiles of at most `most` blocks."""
    row_tiles = -(-row_blocks // most)
    if n_rows == 1:
        return row_tiles, most, 1
    columns = -(-row_blocks // row_tiles)
    return row_tiles, columns, most // columns
