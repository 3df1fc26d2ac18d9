"""Logits of every position from other engines on the same file: llama.cpp and ik_llama.cpp, out of their wheels.

An engine runs in a child process (peer_child.py), so that its crash is a `PeerError` of one test.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import struct
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as QType

from lowlevel import cache_folder

HERE = pathlib.Path(__file__).parent
LLAMA_CPP, IK = "llama.cpp", "ik_llama.cpp"
# engine -> package on PyPI, its module
WHEELS = {
    LLAMA_CPP: ("llama-cpp-py-sync", "llama_cpp_py_sync"),
    IK: ("ik-llama-cpp-python", "ik_llama_cpp"),
}
TIMEOUT = 120  # seconds


class PeerError(RuntimeError):
    """An engine that refused a file, or died; the message ends with what it said."""


class Setting(NamedTuple):
    """How an engine is run.

    `mla` is ik_llama.cpp's alone (0: decompressed, 1 and 2: absorbed, 3: by the number of rows).
    """

    n_ctx: int = 512
    n_ubatch: int = 512
    type_k: str = "F16"
    type_v: str = "F16"
    flash_attention: bool = False
    mla: int = 0
    n_threads: int = 1


@functools.cache
def missing(engine: str) -> str | None:
    """Why an engine cannot be asked on this machine, or None: it can."""
    package, module = WHEELS[engine]
    if importlib.util.find_spec(module) is None:
        return f"NOT CHECKED against {engine}: {package} is not installed"
    try:
        _library(engine)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"NOT CHECKED against {engine}: {package} is of no use here: {error}"
    return None


def peer_logits(engine: str, path, tokens, setting: Setting | None = None) -> np.ndarray:
    """What an engine makes of a prompt.

    Parameters
    ----------
    engine : str
        LLAMA_CPP or IK.
    path : str or os.PathLike
        The model file.
    tokens : sequence of int
        The prompt, as it is: no token is put before it.
    setting : Setting, optional

    Returns
    -------
    numpy.ndarray
        float32 (n_tokens, n_vocab): logits after each token.

    Raises
    ------
    PeerError
        It does not load the file, or died.
    """
    return _peer_logits(engine, path, tuple(map(int, tokens)), setting or Setting())


@functools.cache
def _peer_logits(engine, path, tokens, setting):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "logits.npy")
        job = {
            "paths": [str(path)],
            "tokens": tokens,
            **setting._asdict(),
            "type_k": int(QType[setting.type_k]),
            "type_v": int(QType[setting.type_v]),
        }
        _run(engine, job, out)
        return np.load(out)


def peer_loads(engine: str, paths) -> list[bool]:
    """Which of some files an engine loads, none of which it dies of."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "loaded.npy")
        _run(engine, {"paths": [str(path) for path in paths], "tokens": [], "mla": 0}, out)
        return np.load(out).tolist()


def _run(engine, job, out):
    libraries = [str(library) for library in _library(engine)]
    job = json.dumps({"engine": engine, "libraries": libraries, "out": out, **job})
    child = [sys.executable, str(HERE / "peer_child.py"), job]
    done = subprocess.run(child, capture_output=True, timeout=TIMEOUT)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise PeerError(f"{engine} ended with {done.returncode}:\n" + "\n".join(said[-12:]))


# ---------------------------------------------------------------- the libraries


@functools.cache
def _library(engine):
    """Shared libraries to load in this order: the last is the engine's own."""
    package, module = WHEELS[engine]
    folder = pathlib.Path(importlib.util.find_spec(module).origin).parent
    if engine == IK:
        return (folder / "lib" / "libllama.so",)
    if _glibc() >= (2, 38):
        return (folder / "libllama.so",)
    return _for_older_glibc(folder, importlib.metadata.version(package))


def _glibc():
    return tuple(map(int, platform.libc_ver()[1].split(".")[:2]))


def _for_older_glibc(folder, version):
    """Copies of the wheel's libraries that glibc 2.36 loads, and the functions they miss, in the cache folder."""
    cache = next(cache_folder.usable("peers"), None)
    if cache is None:
        raise OSError("there is no folder for copies of its libraries")
    copies = cache / f"llama.cpp-{version}"
    if not copies.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            shim = os.path.join(unfinished, "libshim.so")
            source = str(HERE / "glibc_shim.c")
            subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", shim], check=True)
            for library in folder.glob("lib*.so*"):
                data = bytearray(library.read_bytes())
                _make_optional(data, b"GLIBC_2.38")
                pathlib.Path(unfinished, library.name).write_bytes(data)
            try:
                os.rename(unfinished, copies)
            except OSError:
                if not copies.is_dir():  # another process was faster otherwise
                    raise
            else:
                os.mkdir(unfinished)  # for TemporaryDirectory to remove
    return copies / "libshim.so", copies / "libllama.so"


SHT_GNU_VERNEED, VER_FLG_WEAK = 0x6FFFFFFE, 2


def _make_optional(elf: bytearray, version: bytes):
    """Mark a version of symbols as one that a 64-bit ELF library may be loaded without, in place.

    The symbols themselves are then looked for in all libraries that are loaded.
    """
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    section_size, n_sections = struct.unpack_from("<HH", elf, 0x3A)
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, ...
    sections = [
        struct.unpack_from("<IIQQQQI", elf, sections_at + index * section_size)
        for index in range(n_sections)
    ]
    for _, kind, _, _, at, _, names in sections:
        while kind == SHT_GNU_VERNEED:
            _, n_versions, _, first, next_file = struct.unpack_from("<HHIII", elf, at)
            entry = at + first
            for _ in range(n_versions):
                _, flags, _, name, next_entry = struct.unpack_from("<IHHII", elf, entry)
                name += sections[names][4]
                if elf[name : elf.index(0, name)] == version:
                    struct.pack_into("<H", elf, entry + 4, flags | VER_FLG_WEAK)
                entry += next_entry
            if not next_file:
                break
            at += next_file
