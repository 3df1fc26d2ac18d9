"""Timing on a device: what the rows of ``kqcap bench --device`` share."""

from __future__ import annotations

import statistics
import time

import numpy as np

from lowlevel import devices

# Values of one random block, repeated to fill an array: odd, so that no two rows are alike.
_BLOCK = (1 << 22) - 3


def is_gpu(device_name):
    return device_name.startswith("cuda:")


def gpu_name(device_name):
    """The GPU's own name, or the simulator's."""
    if not is_gpu(device_name):
        return "simulator"
    import cupy

    index = int(device_name.partition(":")[2])
    return cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()


def seconds_of(device_name, call):
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


def interleaved(device_name, calls, rounds):
    """{name: seconds of each round} of {name: call}, after one call each that is not counted."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(device_name, call))
    return times


def copy_speed(device_name, n_bytes, rounds):
    """Bytes a second, read and written, of a copy on the device."""
    device = devices.get(device_name)
    source, target = (device.empty((n_bytes,), np.uint8) for _ in range(2))
    times = interleaved(device_name, {"copy": lambda: device.copy_flat(target, source)}, rounds)
    return 2 * n_bytes / statistics.median(times["copy"])


def fill(device_name, array, values):
    """Repeat `values`, a NumPy array of the same dtype, over a C-contiguous array of a device."""
    device = devices.get(device_name)
    values = device.from_host(values[: array.size])
    flat = array.reshape(-1)
    for start in range(0, array.size, values.size):
        stop = min(start + values.size, array.size)
        device.copy_flat(flat[start:stop], values[: stop - start])
    return array


def normal(device_name, shape, dtype, seed):
    """A device's array of normal values, a block of them repeated."""
    array = devices.get(device_name).empty(shape, np.dtype(dtype))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(min(_BLOCK, array.size), dtype=np.float32)
    return fill(device_name, array, values.astype(dtype))
