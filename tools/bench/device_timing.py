"""Timing on a device: what the rows of ``kqcap bench --device`` share."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

import quant
from lowlevel import devices
from lowlevel.shapes import resolve_dtype
from quant.formats import block_format

# Values of one random block, repeated to fill an array: odd, so that no two rows are alike.
_BLOCK = (1 << 22) - 3
# What keeps a GPU busy for a millisecond: longer than the host takes to queue a call.
_BUSY_BYTES, _BUSY_TIMES = 1 << 29, 8


def is_gpu(device_name: str) -> bool:
    return device_name.startswith("cuda:")


def kernel_device(device_name: str) -> Any:
    """A device that runs the CUDA kernels, with what these have beside `lowlevel.devices.Device`: `copy_flat`."""
    return devices.get(device_name)


def seconds_of(device_name: str, call: Callable[[], Any]) -> float:
    """Seconds that the device takes for one call; on the simulator the host's."""
    if not is_gpu(device_name):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3


def interleaved(
    device_name: str, calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """{name: seconds of each round} of {name: call}, after one call each that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(device_name, call))
    return times


def queued(
    device_name: str, calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """As `interleaved`; a GPU is busy with something else until a call is queued, so that the host's
    share of the call is not in its time."""
    if not is_gpu(device_name):
        return interleaved(device_name, calls, rounds)
    import cupy

    other = cupy.empty(_BUSY_BYTES, np.uint8)

    def behind_other_work(call):
        stream = cupy.cuda.get_current_stream().ptr
        for _ in range(_BUSY_TIMES):
            cupy.cuda.runtime.memsetAsync(other.data.ptr, 0, other.nbytes, stream)
        return seconds_of(device_name, call)

    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(behind_other_work(call))
    return times


def copy_speed(device_name: str, n_bytes: int, rounds: int) -> float:
    """Bytes a second, read and written, of a copy on the device."""
    device = kernel_device(device_name)
    source, target = (device.empty((n_bytes,), np.uint8) for _ in range(2))
    times = queued(device_name, {"copy": lambda: device.copy_flat(target, source)}, rounds)
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
    if not is_gpu(device_name):
        return None
    import cupy

    devices.get(device_name).synchronise()
    return cupy.cuda.runtime.memGetInfo()[0]
