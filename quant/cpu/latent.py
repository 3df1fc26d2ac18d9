"""Latents to keys or values on the CPU: a head's weights as floats once, then products chunk by chunk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.attention.kv_source import padded_width
from lowlevel.cpu import latent as kernels
from lowlevel.cpu.address import address
from lowlevel.cpu.threads import run_tasks, run_workers

from .dequantize.decoders import DECODERS
from .dequantize.run import THREAD_WEIGHTS, dequantize

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowlevel.devices import Device

# Columns of weights that are decoded at a time, if blocks are not longer.
_LEAST_COLUMNS = 32


def scratch_bytes(kind: Any, heads: int, keys: int, dtype: str) -> int:
    """Weights (heads, rank, d) with padded rows, and the chunk's latents, as floats."""
    return 4 * kind.rank * (heads * padded_width(kind.d) + max(keys, 1))


def reader(
    source: Any, device: Device, heads: slice, scratch: np.ndarray, n_threads: int
) -> Callable[[slice, np.ndarray], None]:
    """See `KVSource.reader`."""
    kind, n_heads = source.type, heads.stop - heads.start
    stride = padded_width(kind.d)
    weights = scratch[: n_heads * kind.rank * stride].reshape(n_heads, kind.rank, stride)
    wide = scratch[weights.size :]
    _decode_weights(source, heads, weights[..., : kind.d], wide, n_threads)
    call = np.zeros(1, kernels.CALL)[0]
    fields = dict(
        n_heads=n_heads, rank=kind.rank, d=kind.d,
        latent_key=source.latents.data.strides[1], latent_fill=source.latents.fill_address,
        wide=address(wide), weights=address(weights),
        weights_head=weights.strides[0], weights_row=stride,
    )  # fmt: skip
    if kind.d_tail:
        tail = source.tail
        fields |= dict(tail_key=tail.data.strides[1], tail_fill=tail.fill_address)
        fields |= dict(d_tail=kind.d_tail)
    for name, value in fields.items():
        call[name] = value

    def read(keys, out):
        call["n_keys"] = keys.stop - keys.start
        call["latent"] = address(source.latents.data[:, keys])
        if kind.d_tail:
            call["tail"] = address(source.tail.data[:, keys])
        call["out"], call["out_head"] = address(out), out.strides[0]
        call["out_key"] = out.strides[1] // 4
        counter = np.zeros(1, np.int64)
        run_workers(n_threads, lambda _: kernels.decompress(call, counter), counter)

    return read


def _decode_weights(source, heads, weights, spare, n_threads):
    """Weights of some heads as (heads, rank, d) floats; `spare`: memory for rows that must be turned."""
    t = source.weights[heads]
    if source.transposed:
        dequantize(t, weights, n_threads)
        return
    n_columns = math.lcm(t.format.block_weights, math.gcd(t.columns, _LEAST_COLUMNS))
    n_workers = max(1, min(n_threads, len(spare) // n_columns, t.size // THREAD_WEIGHTS))
    n_rows = min(kernels.TURNED_ROWS, len(spare) // (n_columns * n_workers))
    head, row, block = t.data.strides[0], t.data.strides[1], t.format.row_bytes(n_columns)
    fields = dict(
        n_heads=len(t), d=t.shape[1], rank=t.columns, rows=n_rows, columns=n_columns,
        source=address(t.data), source_head=head, source_row=row, source_block=block,
        fill=DECODERS[t.format.name].fill.address, spare=address(spare),
        weights=address(weights), weights_head=weights.strides[0], weights_row=weights.strides[1],
    )  # fmt: skip
    job = np.array([fields[name] for name in kernels.TURN], np.int64)
    run_tasks(n_workers, kernels.turn.address, address(job), 0)
