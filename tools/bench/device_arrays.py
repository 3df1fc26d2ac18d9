"""Arrays of a device, and what memory it has: what the rows of ``kqcap bench --device`` share."""

from __future__ import annotations

import math
import statistics
from typing import Any

import gguf
import numpy as np

import quant
from lowlevel import devices
from lowlevel.shapes import resolve_dtype
from quant.formats import block_format

from . import timing

# Values of one random block, repeated to fill an array: odd, so that no two rows are alike.
_BLOCK = (1 << 22) - 3


def kernel_device(device_name: str) -> Any:
    """A device that runs the CUDA kernels, with what these have beside `lowlevel.devices.Device`: `copy_flat`."""
    return devices.get(device_name)


def copy_speed(device_name: str, n_bytes: int, rounds: int) -> float:
    """Bytes a second, read and written, of a copy on the device."""
    device = kernel_device(device_name)
    source, target = (device.empty((n_bytes,), np.uint8) for _ in range(2))
    times = timing.queued({"copy": lambda: device.copy_flat(target, source)}, rounds, device_name)
    return 2 * n_bytes / statistics.median(times["copy"])


def fill(device_name: str, array: Any, values: np.ndarray) -> Any:
    """Repeat `values`, a NumPy array of the same dtype, over a C-contiguous array of a device."""
    device = kernel_device(device_name)
    values = device.from_host(values[: array.size])
    flat = array.reshape(-1)
    for start in range(0, array.size, values.size):
        stop = min(start + values.size, array.size)
        device.copy_flat(flat[start:stop], values[: stop - start])
    return array


def normal(device_name: str, shape: tuple[int, ...], dtype: Any, seed: int) -> Any:
    """A device's array of normal values, a block of them repeated."""
    array = devices.get(device_name).empty(shape, np.dtype(dtype))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(min(_BLOCK, array.size), dtype=np.float32)
    return fill(device_name, array, values.astype(dtype))


def blocks(
    device_name: str, type_name: str, shape: tuple[int, ...], seed: int
) -> quant.QuantTensor:
    """A tensor of a device, its blocks random with scales as weights have them, some rows repeated."""
    rng = np.random.default_rng(seed)
    block = block_format(type_name)
    row_bytes = block.row_bytes(shape[-1])
    n_rows = max(1, min(math.prod(shape[:-1]), _BLOCK // row_bytes))
    if block.is_float:
        values = rng.standard_normal((n_rows, shape[-1]), dtype=np.float32)
        name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[block.name]
        host = values.astype(resolve_dtype(name)).view(np.uint8)
    else:
        host = rng.integers(0, 256, (n_rows, row_bytes), dtype=np.uint8)
        records = host.view(block.block_dtype)
        for field in block.fields:
            if field.dtype == "<f2" and field.count == 1:
                records[field.name] = rng.uniform(0.001, 0.01, records.shape)
    data = devices.get(device_name).empty((*shape[:-1], row_bytes), np.dtype(np.uint8))
    fill(device_name, data, host.reshape(-1))
    return quant.QuantTensor(data, block, tuple(shape))


def host_values(tensor: quant.QuantTensor) -> np.ndarray:
    """What the gguf package makes of a tensor of any device, or our CPU where it lacks the type: float32, on the host."""
    if tensor.format.name in ("Q1_0", "Q2_0"):
        return quant.dequantize(tensor.to("cpu"))
    data = np.ascontiguousarray(tensor.to("cpu").data)
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(tensor.qtype)).reshape(
        tensor.shape
    )


def free_bytes(device_name: str) -> int | None:
    """Memory that the GPU has left for all programs, as cudaMemGetInfo says; None on the simulator."""
    if not timing.is_gpu(device_name):
        return None
    import cupy

    devices.get(device_name).synchronise()
    return cupy.cuda.runtime.memGetInfo()[0]
