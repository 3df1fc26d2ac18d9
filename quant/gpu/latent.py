"""Latents to keys or values on a device that runs CUDA kernels: decoded weights once, one matrix product a chunk.

Latents, weights and what they make are of one dtype, the chunk's own; sums are float32. With float16 each weight is
rounded to the 11 bits that TF32 has too, and latents, which caches keep as float16, to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowlevel.gpu.cast import cast
from lowlevel.gpu.layout import LEAST_WORKSPACE, MOST_WORKSPACE
from lowlevel.shapes import dtype_name, resolve_dtype

from .dequantize.run import decode_blocks

_ALIGNMENT = 256


def _sections(kind, heads, keys, dtype):
    """{name: bytes} of the scratch, in its order; what lasts from chunk to chunk comes first."""
    item = np.dtype(resolve_dtype(dtype)).itemsize
    workspace = item * (heads * keys * kind.d // 8)
    sizes = dict(
        weights=item * heads * kind.rank * kind.d,
        workspace=min(max(workspace, LEAST_WORKSPACE), MOST_WORKSPACE),
    )
    if kind.latents != dtype:
        sizes.update(latents=item * keys * kind.rank, tail=item * keys * kind.d_tail)
    return {name: -(-n // _ALIGNMENT) * _ALIGNMENT for name, n in sizes.items()}


def _parts(scratch, sections, dtype):
    """{name: its part of the scratch}."""
    found, at = {}, 0
    for name, n_bytes in sections.items():
        found[name] = scratch[at // 4 : (at + n_bytes) // 4].view(dtype)
        at += n_bytes
    return found


def scratch_bytes(kind: Any, heads: int, keys: int, dtype: str) -> int:
    """Weights as the chunk's dtype, a workspace for the product, and latents that are of another one."""
    return sum(_sections(kind, heads, max(keys, 1), dtype).values())


def reader(
    source: Any, device: Any, heads: slice, scratch: Any, n_threads: int | None
) -> Callable[[slice, Any], None]:
    """See `KVSource.reader`."""
    kind, n_heads = source.type, heads.stop - heads.start
    weights: list[Any] = []  # decoded for the first chunk, whose dtype says what they become
    parts: dict[int, dict[str, Any]] = {}  # of the scratch, by a chunk's keys

    def read(keys, out):
        n_keys, dtype = keys.stop - keys.start, dtype_name(out.dtype)
        if n_keys not in parts:
            parts[n_keys] = _parts(scratch, _sections(kind, n_heads, n_keys, dtype), out.dtype)
        part = parts[n_keys]
        if not weights:
            shape = n_heads, *source.weights.shape[1:]
            weights.append(part["weights"][: int(np.prod(shape))].reshape(shape))
            decode_blocks(source.weights.format, source.weights.data[heads], weights[0], device)

        def rows(of, name):
            """A chunk of a source of one head, where it lies or as the chunk's dtype."""
            if of.type.name == dtype:
                return of.data[:, keys]
            columns = of.shape[2]
            made = part[name][: n_keys * columns].reshape(1, n_keys, columns)
            if of.type.is_dense:
                cast(device, made, of.data[:, keys])
            else:
                of.reader(device, slice(0, 1))(keys, made)
            return made

        latents = rows(source.latents, "latents")
        with device.gemm(part["workspace"]) as gemm:
            gemm(latents, weights[0], out[..., : kind.d], transposed=not source.transposed)
        if kind.d_tail:
            cast(device, out[..., kind.d :], rows(source.tail, "tail"))

    return read
