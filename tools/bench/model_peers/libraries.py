"""The shared libraries of llama.cpp and ik_llama.cpp out of their wheels on PyPI, in a form that this machine loads."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import struct
import subprocess
import tempfile

from lowlevel import cache_folder

HERE = pathlib.Path(__file__).parent
LLAMA_CPP, IK = "llama.cpp", "ik_llama.cpp"
# engine -> package on PyPI, its module
WHEELS = {
    LLAMA_CPP: ("llama-cpp-py-sync", "llama_cpp_py_sync"),
    IK: ("ik-llama-cpp-python", "ik_llama_cpp"),
}


@functools.cache
def libraries(engine: str) -> tuple[pathlib.Path, ...]:
    """Shared libraries to load in this order: the last is the engine's own.

    Raises
    ------
    ImportError
        Its package is not installed.
    OSError, subprocess.CalledProcessError
        It is of no use on this machine.
    """
    package, module = WHEELS[engine]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ImportError(f"{package} is not installed", name=module)
    folder = pathlib.Path(found.origin).parent
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


def _make_optional(elf: bytearray, version: bytes) -> None:
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
