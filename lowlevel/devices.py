"""Devices by name: "cpu", "cuda:N" and "cudasim".

A device is an object that its own package provides as `open_device(index)` in a module named
`device`, loaded when first asked for; nothing on the ground imports one. What pools and `concat` need:

    name                                  "cpu", "cuda:0", ...
    room                                  "cpu" or "gpu": the folder, on any floor, with kernels for it
    allocate(n_bytes)                     flat memory of n_bytes, 256-byte aligned, contents undefined
    view(memory, offset, shape, dtype)    C-contiguous array over part of it that keeps it alive
    address(array)                        address of the first element (int), or None for what is no array of the device
    fill(memory, start, stop, pattern)    repeat a 16-bit pattern over bytes start..stop (both even)
    holds(memory, start, stop, pattern)   whether those bytes still hold the pattern
    empty(shape, dtype)                   a C-contiguous array outside any pool
    plain(array)                          the array without the ways of a subclass
    copy(target, source)                  shape and dtype equal, any strides, no element in common; takes no memory
    join(target, sources, axis)           copy sources one after the other along an axis of target, which they fill
    overlap(array, array)                 whether they share an element (True also if that is too hard to say)
    overlaps_itself(array)                whether two of its indices may mean one place
    writable(array)
    freeze(array)                         make later writes through it an error, where the device's arrays can
    synchronise()                         wait for what this thread has queued
    has_streams                           whether work is queued on streams; then also:
    current_stream()                      the thread's current one; its `ptr` tells it from others
    record(stream, event=None)            an event after all that is queued on a stream now; one that is given is used again
    wait(stream, event)                   later work of the stream comes after the event; the program does not wait
    finish()                              wait for all work of all streams
    from_host(array)                      a NumPy array's contents as a C-contiguous array of the device
    to_host(array)                        an array's contents as a NumPy array
"""

import importlib
import re
import sys

import numpy as np

_MODULES = {
    "cpu": "lowlevel.cpu.device",
    "cuda": "lowlevel.cuda.device",
    "cudasim": "lowlevel.cudasim.device",
}
_NAME = re.compile(r"cpu|cudasim|cuda(?::([0-9]+))?", re.ASCII)
_open = {}
_by_name = {}  # as somebody spelt it -> device


def canonical_name(name):
    """`name` as devices spell it themselves: "cpu", "cuda:0" (for "cuda" too), "cudasim".

    Raises
    ------
    TypeError, ValueError
        Not a device's name.
    """
    kind, index = _parse(name)
    return f"cuda:{index}" if kind == "cuda" else kind


def get(name):
    """The device called `name`, the same object each time.

    Raises
    ------
    TypeError, ValueError
        Not a device's name, or one that this installation does not have.
    """
    device = _by_name.get(name) if isinstance(name, str) else None
    if device is not None:
        return device
    key = kind, index = _parse(name)
    if key not in _open:
        try:
            module = importlib.import_module(_MODULES[kind])
        except ModuleNotFoundError as error:
            if not _MODULES[kind].startswith(
                error.name
            ):  # the device is there, a library it needs is not
                raise
            raise ValueError(f'device: {name!r} is not part of this version; use "cpu"') from None
        _open[key] = module.open_device(index)
    return _by_name.setdefault(name, _open[key])


def of_array(array, name):
    """The device that an array lies on; `name` is the argument it came as, for the error.

    Raises
    ------
    TypeError
        No array of a known device, or one that hides elements (a masked array).
    """
    if type(array) is np.ndarray:  # as most are: in haste
        return get("cpu")
    if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):
        return get("cudasim" if _is_made_by(array, "lowlevel.cudasim", "CudaSimArray") else "cpu")
    if _is_made_by(array, "cupy", "ndarray"):
        return get(f"cuda:{array.data.device_id}")
    raise TypeError(
        f"{name}: expected a NumPy array, got {type(array).__name__} (CuPy arrays will do too)"
    )


def check_on_cpu(array, name, call):
    """Raise NotImplementedError if `array`, argument `name` of `call`, lies on another device than the CPU.

    For calls that other devices do not have yet: the simulator's arrays are NumPy arrays too, and must
    not be computed on the CPU by mistake.
    """
    device = of_array(array, name)
    if device.name != "cpu":
        raise NotImplementedError(
            f"{name}: lies on {device.name}, and {call} runs on the CPU only in this version; "
            f"lowlevel.asnumpy (of a QuantTensor: to('cpu')) brings it there"
        )


def _is_made_by(array, module, kind):
    """Whether `array` is of a module's type; if nobody has imported the module it is not."""
    return module in sys.modules and isinstance(array, getattr(sys.modules[module], kind))


def _parse(name):
    if not isinstance(name, str):
        raise TypeError(
            f'device: give a name such as "cpu" or "cuda:0"; got {name!r} ({type(name).__name__})'
        )
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'device: known are "cpu", "cuda:N" and "cudasim"; got {name!r}')
    return name.partition(":")[0], int(match.group(1) or 0)
