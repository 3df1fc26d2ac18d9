"""CuPy: the only module that imports it, and only when a GPU is asked for.

Above this layer "cuda:N" and "cudasim" share all code: plans, launch shapes, arguments, offsets, the pool's order of
streams. What runs on a GPU alone, and no test without one can show:

here               load (_driver_major and _how_to_install say what is missing), check_device,
                   compute_capability, architecture, n_multiprocessors, max_shared_bytes;
                   compile_module: NVRTC as CuPy calls it, its disk cache (that every kernel compiles is shown by
                   ``python -m quant.gpu.resources``); _SpecificModule: kernels of one architecture ("90a"),
                   compiled by _compile_cubin and kept beside CuPy's own (cubin_folder) by _write_whole
device.CudaDevice  allocate, view, empty: memory of its own, CuPy arrays over it; address, plain, writable, freeze
                   fill, holds: what debug pools write and look for
                   from_host, upload, to_host, copy_flat: copies; tensor_map: what TMA reads by
                   pinned: memory of the host that copies are queued to, copy_out and download: from the device to there;
                   reach, receive: copies between GPUs; free_bytes: what is left on the card
                   launch, start: which GPU is current, shared memory's opt-in, the call itself;
                   start_in_haste: the driver's call (driver_launch.py; what it is handed: packed_launch.py, which a test
                   reads)
                   gemm (cublas.py: the workspace that cuBLAS is given, row-major products, TF32)
                   current_stream, own_stream, record, wait, settle, synchronise, finish: CuPy's streams and events
                   capture: what a model runs again, as a CUDA graph

tests/cuda with ``-m gpu`` runs all of it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import json
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

from lowlevel.extras import pip_install

if TYPE_CHECKING:
    from collections.abc import Sequence


MIN_CAPABILITY = 8, 0  # bfloat16 conversions, asynchronous copies


@functools.cache
def load() -> Any:
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
        raise ImportError(f'device: "cuda" needs CuPy: {what}; {_how_to_install()}') from error
    return cupy


def _how_to_install():
    """What pip should be told, for the driver of this machine."""
    major = _driver_major()
    if major is None:
        found = "no NVIDIA driver is found here (libcuda.so.1); with one for CUDA 12 or 13"
        wanted = "cuda12", "cuda13"
    else:
        found = f"for this machine's driver (CUDA {major})"
        wanted = ("cuda12" if major < 13 else "cuda13",)
    return f"{found}: " + " or ".join(pip_install(extra) for extra in wanted)


def _driver_major():
    """The CUDA version that the driver is for: 12; None where there is no driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000 or None


def check_device(index: int) -> None:
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


def compute_capability(index: int) -> tuple[int, int]:
    """(major, minor) of a GPU."""
    digits = load().cuda.Device(index).compute_capability  # "90", "120"
    return int(digits[:-1]), int(digits[-1])


def n_multiprocessors(index: int) -> int:
    """Streaming multiprocessors of a GPU."""
    return int(load().cuda.Device(index).attributes["MultiProcessorCount"])


def max_shared_bytes(index: int) -> int:
    """Shared memory that one block may ask for on a GPU."""
    return int(load().cuda.Device(index).attributes["MaxSharedMemoryPerBlockOptin"])


def architecture(index: int) -> str:
    """What a GPU's own instructions go by: "90a", "120a"."""
    return "{}{}a".format(*compute_capability(index))


def compile_module(
    text: str,
    name: str,
    options: Sequence[str],
    expressions: Sequence[str],
    architecture: str | None,
) -> Any:
    """Kernels of a source by NVRTC, from CuPy's disk cache where they are there (see loader.Library)."""
    if architecture is not None:
        return _SpecificModule(text, name, options, expressions, architecture)
    # CuPy passes -ftz=true itself.
    options = tuple(option for option in options if option != "-ftz=true")
    return load().RawModule(code=text, options=options, name_expressions=expressions)


def cubin_folder() -> pathlib.Path:
    """Where binaries of one architecture are kept, as files "kqcap-...": CuPy's own folder of kernels."""
    default = pathlib.Path.home() / ".cupy" / "kernel_cache"
    return pathlib.Path(os.environ.get("CUPY_CACHE_DIR", default))


class _SpecificModule:
    """Kernels compiled for an architecture such as "90a", which RawModule does not take."""

    def __init__(self, text, name, options, expressions, architecture):
        options = (*options, f"-arch=sm_{architecture}", "--device-as-default-execution-space")
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        key = repr((text, options, expressions, nvrtc.getVersion())).encode()
        folder = cubin_folder()
        path = folder / f"kqcap-{hashlib.sha256(key).hexdigest()}.cubin"
        names = path.with_suffix(".json")
        if not names.exists():  # written last
            lowered, cubin = _compile_cubin(nvrtc, text, name, options, expressions)
            folder.mkdir(parents=True, exist_ok=True)
            _write_whole(path, cubin)
            _write_whole(names, json.dumps(lowered).encode())
        self._lowered = json.loads(names.read_text())
        self._module = load().RawModule(path=str(path))

    def get_function(self, expression):
        return self._module.get_function(self._lowered[expression])


def _compile_cubin(nvrtc, text, name, options, expressions):
    """({expression: name in the binary}, the binary)."""
    program = nvrtc.createProgram(text, name, (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"{name} does not compile ({error}):\n{log}") from None
        lowered = {each: nvrtc.getLoweredName(program, each) for each in expressions}
        return lowered, nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)


def _write_whole(path, content):
    """A file that other processes see whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
