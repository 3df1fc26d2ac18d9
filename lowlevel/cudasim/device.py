"""The simulator as a device (see `lowlevel.devices`): the CUDA path's own code, on the host."""

import numpy as np

from lowlevel.cuda.kernel_device import KernelDevice
from lowlevel.cuda.loader import Library
from lowlevel.sizes import format_size

from .array import CudaSimArray, asnumpy, empty
from .module import Module


class CudaSimDevice(KernelDevice):
    """Memory of the simulated device and launches on it."""

    name = "cudasim"
    n_multiprocessors = 132  # an H100's: plans made here are a GPU's
    shared_of_a_block = 227 << 10

    def __init__(self):
        super().__init__(Library(_compile_module))

    def allocate(self, n_bytes):
        try:
            return empty(n_bytes, np.uint8)
        except (MemoryError, ValueError):  # ValueError: more than an address can say
            raise MemoryError(
                f"the machine does not give {format_size(n_bytes)} of memory"
            ) from None

    def view(self, memory, offset, shape, dtype):
        return CudaSimArray(shape, dtype, memory, offset)

    def address(self, array):
        return array.ctypes.data if isinstance(array, CudaSimArray) else None

    def fill(self, memory, start, stop, pattern):
        memory[start:stop].view(np.uint16)[...] = pattern

    def holds(self, memory, start, stop, pattern):
        return bool((memory[start:stop].view(np.uint16) == pattern).all())

    def empty(self, shape, dtype):
        return empty(shape, dtype)

    def plain(self, array):
        return array if type(array) is CudaSimArray else array.view(CudaSimArray)

    def writable(self, array):
        return array.flags.writeable

    def from_host(self, array):
        target = empty(array.shape, array.dtype)
        target[...] = array
        return target

    def upload(self, target, array):
        target[...] = array

    def to_host(self, array):
        return asnumpy(array)

    def synchronise(self):
        pass

    def start(self, function, grid, block, arguments, shared_mem):
        if shared_mem > function.max_dynamic_shared_size_bytes:
            function.max_dynamic_shared_size_bytes = shared_mem
        function(grid, block, arguments, shared_mem=shared_mem)

    def copy_flat(self, target, source):
        np.copyto(target, source, casting="no")


def _compile_module(text, name, options, expressions):
    return Module(name, options, expressions, code=text)


def open_device(index):
    return CudaSimDevice()
