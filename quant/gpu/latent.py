"""Latents to keys or values on a device that runs CUDA kernels: decoded weights once, a matrix product a chunk."""

from collections.abc import Callable
from typing import Any

from lowlevel.gpu.cast import cast
from lowlevel.gpu.layout import LEAST_WORKSPACE, MOST_WORKSPACE
from lowlevel.shapes import dtype_name

from .dequantize.run import decode_blocks

_ALIGNMENT = 64  # floats


def _sections(kind, heads, keys):
    """{name: floats} of the scratch, in its order; what lasts from chunk to chunk comes first."""
    product = heads * keys * kind.d
    workspace = min(max(product // 8, LEAST_WORKSPACE // 4), MOST_WORKSPACE // 4)
    sizes = dict(
        weights=heads * kind.rank * kind.d, workspace=workspace, latents=keys * kind.rank,
        tail=keys * kind.d_tail, product=product,
    )  # fmt: skip
    return {name: -(-n // _ALIGNMENT) * _ALIGNMENT for name, n in sizes.items()}


def scratch_bytes(kind: Any, heads: int, keys: int) -> int:
    """Weights, latents and the product in float32, and a workspace for it."""
    return 4 * sum(_sections(kind, heads, max(keys, 1)).values())


def reader(
    source: Any, device: Any, heads: slice, scratch: Any, n_threads: int | None
) -> Callable[[slice, Any], None]:
    """See `KVSource.reader`."""
    kind, n_heads = source.type, heads.stop - heads.start
    weights = scratch[: n_heads * kind.rank * kind.d].reshape(n_heads, *source.weights.shape[1:])
    decode_blocks(source.weights.format, source.weights.data[heads], weights, device)

    def read(keys, out):
        n_keys = keys.stop - keys.start
        part: dict[str, Any] = {}
        at = 0
        for name, n in _sections(kind, n_heads, n_keys).items():
            part[name], at = scratch[at : at + n], at + n

        def rows(name, planes, columns):
            return part[name][: planes * n_keys * columns].reshape(planes, n_keys, columns)

        latents, product = rows("latents", 1, kind.rank), rows("product", n_heads, kind.d)
        _widen(device, source.latents, keys, latents)
        may_round = dtype_name(out.dtype) != "float32"
        with device.gemm(part["workspace"]) as gemm:
            for h in range(n_heads):
                gemm(
                    latents, weights[h : h + 1], product[h : h + 1],
                    transposed=not source.transposed, may_round=may_round,
                )  # fmt: skip
        cast(device, out[..., : kind.d], product)
        if kind.d_tail:
            tail = rows("tail", 1, kind.d_tail)
            _widen(device, source.tail, keys, tail)
            cast(device, out[..., kind.d :], tail)

    return read


def _widen(device, source, keys, out):
    """Rows of a source of one head as float32."""
    if source.type.is_dense:
        cast(device, out, source.data[:, keys])
    else:
        source.reader(device, slice(0, 1))(keys, out)
