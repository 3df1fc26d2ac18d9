"""Rows of a quantised table by index on the CPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu.jit import kernel
from lowlevel.cpu.ops import frame
from lowlevel.cpu.ops.elementwise import read_i32

from .dequantize.decoders import DECODERS

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.devices import Device

    from ..tensor import QuantTensor


@functools.cache
def _embed_kernel(name):
    decode = DECODERS[name].decode_f32

    @kernel(inline=True)
    def embed_rows(integers, floats, first, stop):
        for row in range(first, stop):
            row_id = np.int64(read_i32(integers[4] + row * integers[5]))
            source, target = integers[0] + row_id * integers[1], integers[2] + row * integers[3]
            decode(source, integers[6], target)

    return frame.rows_kernel(embed_rows)


def embed(
    device: Device, t: QuantTensor, ids: np.ndarray, out: Rows, n_threads: int | None
) -> None:
    """See `quant.embed`; out as `lowlevel.checks.Rows`."""
    integers = (
        frame.address(t.data), t.data.strides[0], frame.address(out.array), out.row,
        frame.address(ids), ids.strides[0], t.format.row_blocks(t.columns),
    )  # fmt: skip
    row_bytes = t.row_bytes + 4 * t.columns
    n_rows = len(ids) if t.columns else 0
    frame.run(_embed_kernel(t.format.name), integers, (0,), n_rows, row_bytes, n_threads)
