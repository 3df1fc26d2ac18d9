"""NVRTC without a GPU and without CuPy: compiles a source for any architecture.

Needs the wheels cuda-bindings and nvidia-cuda-nvrtc (and, for kernels that include CUDA's own
headers, nvidia-cuda-runtime and nvidia-cuda-crt).
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


PACKAGES = "cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt"


class NvrtcMissingError(ImportError):
    """The wheels that bring NVRTC are not installed."""


class NvrtcCompileError(RuntimeError):
    """A source that NVRTC rejects; the message is NVRTC's, with the file's own lines."""


class Program(NamedTuple):
    """What NVRTC made of a source.

    Attributes
    ----------
    lowered : dict of str
        From each expression to the name it has in the binary.
    log : str
    cubin : bytes
    """

    lowered: dict
    log: str
    cubin: bytes


@functools.cache
def _bindings():
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # RuntimeError: no library to load
        raise NvrtcMissingError(f"NVRTC: {error}; pip install {PACKAGES}") from error
    return nvrtc


def version() -> str:
    """NVRTC's version: "13.5"."""
    nvrtc = _bindings()
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def architectures() -> list[int]:
    """What this NVRTC compiles for: [75, 80, ...]."""
    nvrtc = _bindings()
    _, found = nvrtc.nvrtcGetSupportedArchs()
    return list(found)


def compile_program(
    text: str, name: str, options: Sequence[str], expressions: Sequence[str], architecture: str
) -> Program:
    """Compile a source.

    Parameters
    ----------
    text, name : str
        The source; what messages call it.
    options, expressions : sequence of str
        See loader.OPTIONS; kernels, or template instances of them.
    architecture : str
        "80", "90a", ...

    Returns
    -------
    Program

    Raises
    ------
    NvrtcMissingError, NvrtcCompileError
    """
    nvrtc = _bindings()

    def call(function, *arguments):
        error, *results = function(*arguments)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise NvrtcCompileError(f"{name}, sm_{architecture}: {error.name}")
        return results[0] if results else None

    options = [
        *options,
        f"-arch=sm_{architecture}",
        "--ptxas-options=-v",  # registers, spills, stack and shared memory come in the log
        *(f"-I{folder}" for folder in _header_folders()),
    ]
    program = call(nvrtc.nvrtcCreateProgram, text.encode(), name.encode(), 0, [], [])
    try:
        for expression in expressions:
            call(nvrtc.nvrtcAddNameExpression, program, expression.encode())
        encoded = [option.encode() for option in options]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = bytearray(call(nvrtc.nvrtcGetProgramLogSize, program))
        call(nvrtc.nvrtcGetProgramLog, program, log)
        log = log.rstrip(b"\0").decode(errors="replace")
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise NvrtcCompileError(f"{name} does not compile for sm_{architecture}:\n{log}")
        lowered = {
            expression: call(nvrtc.nvrtcGetLoweredName, program, expression.encode()).decode()
            for expression in expressions
        }
        cubin = bytearray(call(nvrtc.nvrtcGetCUBINSize, program))
        call(nvrtc.nvrtcGetCUBIN, program, cubin)
        return Program(lowered, log, bytes(cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@functools.cache
def _header_folders():
    """The wheels' include folders, if they are there."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations) if spec else []
    found = (path for root in roots for path in sorted(pathlib.Path(root).glob("*/include")))
    return tuple(str(path) for path in found)
