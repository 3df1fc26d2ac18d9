"""The CPU as a device: host memory as NumPy arrays (see `lowlevel.devices`)."""

import numpy as np

from lowlevel.arena import ALIGNMENT
from lowlevel.cpu import threads


class CpuDevice:
    """Memory and copies on the host."""

    name = "cpu"

    def allocate(self, n_bytes):
        # The slack that reaches the next aligned address is not part of what is handed out. Pages are
        # touched by whoever writes them, so a large arena costs what is used of it.
        memory = np.empty(n_bytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + n_bytes]

    def view(self, memory, offset, shape, dtype):
        return np.ndarray(shape, dtype, memory, offset)

    def address(self, array):
        return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else None

    def fill(self, memory, start, stop, pattern):
        memory[start:stop].view(np.uint16)[...] = pattern

    def holds(self, memory, start, stop, pattern):
        return bool((memory[start:stop].view(np.uint16) == pattern).all())

    def resolve_n_threads(self, n_threads):
        return threads.resolve_n_threads(n_threads)

    def copy(self, target, source):
        np.copyto(target, source, casting="no")


def open_device(index):
    return CpuDevice()
