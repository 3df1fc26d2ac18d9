"""CuPy: the only module that imports it, and only when a GPU is asked for.

Above this layer "cuda:N" and "cudasim" share all code: plans, launch shapes, arguments, offsets, the pool's order of
streams. What runs on a GPU alone, and no test without one can show:

here               load, check_device, compute_capability, n_multiprocessors, max_shared_bytes; compile_module: NVRTC as
                   CuPy calls it, its disk cache (that every kernel compiles is shown by ``python -m
                   lowlevel.cuda.resources``)
device.CudaDevice  allocate, view, empty: memory of its own, CuPy arrays over it; address, plain, writable, freeze
                   fill, holds: what debug pools write and look for
                   from_host, upload, to_host, copy_flat: copies
                   launch, start: which GPU is current, shared memory's opt-in, the call itself
                   gemm (cublas.py: the workspace that cuBLAS is given, row-major products, TF32)
                   current_stream, record, wait, synchronise, finish: CuPy's streams and events

tests/cuda with ``-m gpu`` runs all of it.
"""

import functools

_EXTRAS = "pip install 'kqcap[cuda12]' (driver for CUDA 12) or 'kqcap[cuda13]' (CUDA 13)"
MIN_CAPABILITY = 8, 0  # bfloat16 conversions, asynchronous copies


@functools.cache
def load():
    """The cupy module.

    Raises
    ------
    ImportError
        CuPy is not installed, or cannot be loaded.
    """
    try:
        import cupy
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        what = "CuPy is not installed" if missing else f"CuPy cannot be loaded ({error})"
        raise ImportError(f'device: "cuda" needs CuPy: {what}; {_EXTRAS}') from error
    return cupy


def check_device(index):
    """Raise unless GPU `index` is there and can run the kernels.

    Raises
    ------
    ValueError
        No such GPU, or one too old.
    ImportError
        No CuPy.
    """
    cupy = load()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f'device: no GPU for "cuda:{index}": {error}') from None
    if index >= count:
        there = f'"cuda:0" to "cuda:{count - 1}"' if count > 1 else '"cuda:0" only'
        raise ValueError(f'device: no "cuda:{index}" on this machine; there is {there}')
    capability = compute_capability(index)
    if capability < MIN_CAPABILITY:
        raise ValueError(
            f'device: "cuda:{index}" has compute capability {capability[0]}.{capability[1]}; '
            f"the kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} (Ampere) or later"
        )


def compute_capability(index):
    """(major, minor) of a GPU."""
    digits = load().cuda.Device(index).compute_capability  # "90", "120"
    return int(digits[:-1]), int(digits[-1])


def n_multiprocessors(index):
    """Streaming multiprocessors of a GPU."""
    return int(load().cuda.Device(index).attributes["MultiProcessorCount"])


def max_shared_bytes(index):
    """Shared memory that one block may ask for on a GPU."""
    return int(load().cuda.Device(index).attributes["MaxSharedMemoryPerBlockOptin"])


def compile_module(text, name, options, expressions):
    """Kernels of a source by NVRTC, from CuPy's disk cache where they are there (see loader.Library)."""
    # CuPy passes -ftz=true itself.
    options = tuple(option for option in options if option != "-ftz=true")
    return load().RawModule(code=text, options=options, name_expressions=expressions)
