"""The host compiler, and a disk cache of what it made.

The cache is keyed by content: the source with every file it includes, this package's own headers,
the flags, the compiler's version and the machine's instruction set. Entries appear by rename, so
that any number of processes can share a folder; where it cannot be written, a temporary folder
takes its place (what the unwritable one already holds is still used).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

from lowlevel import cache_folder

from . import source, source_text, source_variables
from .advice import advice
from .errors import CompileError, CompilerNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence


PACKAGE = pathlib.Path(__file__).resolve().parent
INCLUDE = PACKAGE / "include"
RUNTIME = PACKAGE / "runtime"

_BASE_FLAGS = (
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-march=native",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-stack-protector",
    "-fno-threadsafe-statics",
    "-fvisibility=hidden",
    "-w",
)
_RUNTIME_FLAGS = (*(flag for flag in _BASE_FLAGS if flag != "-fvisibility=hidden"), "-O2")
_KEEP_UNUSED_DAYS = 30


class Compiler(NamedTuple):
    path: str
    version: str  # the first line of --version
    is_clang: bool


@functools.cache
def find_compiler() -> Compiler:
    """The compiler named by the environment's CUDASIM_CXX, else g++, else clang++."""
    wanted = os.environ.get("CUDASIM_CXX")
    for name in (wanted,) if wanted else ("g++", "clang++"):
        path = shutil.which(name)
        if path:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True)
            version = answer.stdout.splitlines()[0] if answer.stdout else ""
            return Compiler(path, version, "clang" in version.lower())
    missing = (
        f"CUDASIM_CXX names {wanted!r}, which is not there" if wanted else "there is none here"
    )
    raise CompilerNotFoundError(
        f"cudasim compiles kernels with g++ or clang++, and {missing}. Install one: "
        "`apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora, RHEL), `apk add g++` "
        "(Alpine), `conda install gxx` (conda), or set CUDASIM_CXX to a compiler"
    )


@functools.cache
def _machine():
    """What -march=native depends on."""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({line for line in text.splitlines() if line.startswith(wanted)}))
    return platform.processor()


@functools.cache
def _own_digest():
    if not INCLUDE.is_dir():
        raise CompilerNotFoundError(
            f"cudasim compiles kernels with files of its own, and {PACKAGE} is no folder that a "
            "compiler can read: run kqcap as pip installs it, or unzipped, not from within a zip"
        )
    digest = hashlib.sha256()
    for folder in (INCLUDE, RUNTIME):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for module in (source, source_text, source_variables):
        digest.update(pathlib.Path(module.__file__).read_bytes())
    digest.update(pathlib.Path(__file__).read_bytes())
    return digest.hexdigest()


def _digest(*parts):
    compiler = find_compiler()
    digest = hashlib.sha256()
    for part in (compiler.path, compiler.version, _machine(), _own_digest(), *parts):
        digest.update(str(part).encode() + b"\0")
    return digest.hexdigest()[:32]


# ---- the cache folder ---------------------------------------------------------------------------


def _wanted_folder():
    """Where entries are looked for first; it need not be writable, nor be there."""
    if "CUDASIM_CACHE_DIR" in os.environ:
        return pathlib.Path(os.environ["CUDASIM_CACHE_DIR"])
    return cache_folder.users_own(cache_folder.SIMULATOR)


@functools.cache
def _temporary_folder():
    """Where entries are made if the wanted folder cannot be written."""
    for folder in cache_folder.temporary(cache_folder.SIMULATOR):
        return folder
    return pathlib.Path(tempfile.mkdtemp(prefix="kqcap-cudasim-"))


def _cached(name, build):
    """The path of cache entry `name`; `build(path)` makes it where it is missing."""
    wanted = _wanted_folder()
    path = wanted / name
    if not path.exists():
        folder = wanted if cache_folder.is_writable(wanted) else _temporary_folder()
        path = folder / name
        with _lock(folder / (name + ".lock")):
            if not path.exists():
                _forget_unused(folder)
                with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
                    result = pathlib.Path(scratch) / name
                    build(result)
                    os.replace(result, path)
    with contextlib.suppress(OSError):
        os.utime(path)  # used today
    return path


@contextlib.contextmanager
def _lock(path):
    """One process at a time builds an entry; the others wait for it."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _forget_unused(folder):
    oldest = time.time() - _KEEP_UNUSED_DAYS * 86400
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()


# ---- building -----------------------------------------------------------------------------------


def _run(command, what):
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if answer.returncode:
        text = answer.stderr.strip()
        raise CompileError(f"{what} does not compile:\n{text[:6000]}{advice(text)}")
    return answer.stdout


def build_runner() -> pathlib.Path:
    """The path of the runner executable, compiled where it is not in the cache."""

    def build(path):
        sources = sorted(str(file) for file in RUNTIME.glob("*.cpp"))
        _run(
            [find_compiler().path, *_RUNTIME_FLAGS, f"-I{INCLUDE}", *sources, "-o", str(path)]
            + ["-rdynamic", "-ldl", "-lpthread"],
            "the simulator's own runtime",
        )

    return _cached(f"runner-{_digest('runner', _RUNTIME_FLAGS)}", build)


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)


def _with_includes(path, text, include_dirs):
    """[(path, text)] of a source and of all files it includes that are not the compiler's."""
    found, waiting, seen = [(str(path), text)], [(pathlib.Path(path), text)], set()
    while waiting:
        including, content = waiting.pop()
        for name in _INCLUDE.findall(content):
            for folder in (including.parent, *map(pathlib.Path, include_dirs)):
                file = folder / name
                if not file.is_file():
                    continue
                if file not in seen:
                    seen.add(file)
                    included = file.read_text()
                    found.append((str(file), included))
                    waiting.append((file, included))
                break
    return found


def _optimization(is_checking):
    """Flags of kernels, which are compiled far longer than they run.

    -O1 takes two thirds of the time of -O2, and giving out registers without a look at loops five sixths of that. What
    of -O2 makes one fma of a * b + c, as on the device, comes under the name of expensive optimizations.

    With checks nothing is optimised, which takes a third of the time; the runs take as long, and no access is left out.
    """
    if is_checking:
        return ["-O0"]
    return ["-O1", "-fexpensive-optimizations", *_supported("-fira-region=one")]


def _mode_flags(race, ub):
    """Flags of the checking modes. The libraries are linked without the sanitizers' runtimes."""
    compiler = find_compiler()
    flags = _optimization(race or ub)
    if race:
        flags += ["-fsanitize=thread"]
        prefix = ["-mllvm", "-{}"] if compiler.is_clang else ["--param", "{}"]
        value = {False: "0", True: "1"}
        switches = [("tsan-instrument-func-entry-exit", False), ("tsan-distinguish-volatile", True)]
        if compiler.is_clang:
            # The runtime logs atomics itself; g++ leaves them alone where told so.
            switches.append(("tsan-instrument-atomics", False))
        for name, on in switches:
            flags += [part.format(f"{name}={value[on]}") for part in prefix]
    if ub:
        unwanted = "vptr,function" if compiler.is_clang else "vptr"
        flags += ["-fsanitize=undefined", f"-fno-sanitize={unwanted}", "-fno-sanitize-recover=all"]
    if race or ub:
        flags += _supported(
            "-ftrivial-auto-var-init=pattern"
        )  # locals that nobody has set show too
    return flags


@functools.cache
def _supported(flag):
    command = [find_compiler().path, flag, "-x", "c++", "-fsyntax-only", os.devnull]
    return [flag] if subprocess.run(command, capture_output=True).returncode == 0 else []


def build_library(
    path: str,
    text: str,
    flags: Sequence[str],
    include_dirs: Sequence[str],
    name_expressions: Sequence[str],
    race: bool,
    ub: bool,
) -> pathlib.Path:
    """Compile a CUDA source to a library for the runner.

    Parameters
    ----------
    path : str
        What messages call the source; the folder for its ``#include "..."``.
    text : str
        The source.
    flags : sequence of str
        -D, -U, -I and -f flags for the host compiler.
    include_dirs : sequence of str
    name_expressions : sequence of str
        Template kernels to instantiate.
    race, ub : bool
        Checking modes.

    Returns
    -------
    pathlib.Path
        The library; its kernels are the extern "C" ones in the source's order, then the expressions.
    """
    flags = [*flags, *(f"-I{folder}" for folder in include_dirs)]
    if race:
        flags.append("-DCUDASIM_RACE=1")
    mode = _mode_flags(race, ub)
    files = _with_includes(path, text, include_dirs)
    key = _digest("library", _BASE_FLAGS, flags, mode, name_expressions, files)

    def preprocess(folder):
        copy = pathlib.Path(folder) / "source.cu"
        copy.write_text(f'#line 1 "{path}"\n{text}')
        preprocessed = _run(
            [find_compiler().path, "-E", "-x", "c++", *_BASE_FLAGS, *flags]
            + ["-iquote", str(pathlib.Path(path).parent), f"-I{INCLUDE}"]
            + ["-include", "cudasim/prelude.h", str(copy)],
            path,
        )
        try:
            return source.rewrite(preprocessed.replace(f'"{copy}"', f'"{path}"'))
        except ValueError as problem:
            raise CompileError(f"{path}: {problem}") from None

    def build(result):
        rewritten, kernels = preprocess(result.parent)
        entries = [(kernel.name, kernel) for kernel in kernels.values() if kernel.is_extern_c]
        for expression in name_expressions:
            template = expression.split("<")[0].split("::")[-1].strip()
            entries.append((expression, kernels.get(template)))
        whole, compiled = result.parent / "kernels.ii", result.parent / "kernels.o"
        whole.write_text(rewritten + source.kernel_table(entries, race))
        compiler = [find_compiler().path]
        _run(
            [*compiler, *_BASE_FLAGS, *mode]
            + [flag for flag in flags if flag.startswith("-f")]
            + ["-c", str(whole), "-o", str(compiled)],
            path,
        )
        _run([*compiler, "-shared", str(compiled), "-o", str(result)], path)

    return _cached(f"library-{key}.so", build)
