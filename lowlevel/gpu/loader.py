"""From a kernel's name to something that can be launched: text, headers, compiled modules.

What a compiler gets is one text: the .cu with its ``#include "..."`` files in their places and
``#line`` before each piece, so that messages name the files' own lines. CuPy's disk cache is keyed
by text and options, and so notices a changed header too. Some headers are no files: the package makes their
text from a table (see instances.py).
"""

from __future__ import annotations

import importlib.resources
import re
import threading
from typing import TYPE_CHECKING, Any

from lowlevel.fork_lock import child_lock

from .instances import generated, of_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from .instances import Kernel


# CuPy adds -ftz=true to whatever it compiles: everybody compiles so, then.
OPTIONS = ("-std=c++17", "-ftz=true")
_SHARED_HEADERS = ("lowlevel.gpu", "include")
_INCLUDE = re.compile(r'[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"[^\n]*')


def display_name(package: str, file: str) -> str:
    """What messages call a file: "quant/gpu/q2_k.cu"."""
    return "/".join((*package.split("."), file))


def source_text(package: str, file: str) -> str:
    """The text of a source with its own headers in it.

    Parameters
    ----------
    package, file : str
        ``"quant.gpu", "q2_k.cu"``.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        The file, or a header it includes by ``#include "..."``, does not come with the package.
    """
    seen = set()

    def expand(package, folder, file):
        name = display_name(package, "/".join((*folder, file)))
        lines = _read(package, folder, file).split("\n")
        result = [f'#line 1 "{name}"']
        for number, line in enumerate(lines, start=1):
            match = _INCLUDE.fullmatch(line)
            if match is None:
                result.append("" if line.strip() == "#pragma once" else line)
                continue
            found = _find(package, folder, match.group(1), f"{name}:{number}")
            if found not in seen:
                seen.add(found)
                result += expand(*found)
            result.append(f'#line {number + 1} "{name}"')
        return result

    return "\n".join(expand(package, (), file))


def _read(package, folder, file):
    made = generated(package, file)
    if made is not None:
        return made
    path = importlib.resources.files(package).joinpath(*folder, file)
    return path.read_text(encoding="utf-8")


def _find(package, folder, file, where):
    """(package, folder, file) of a header: made by the package, beside the file that includes it, or shared."""
    if generated(package, file) is not None:
        return package, (), file
    for place in ((package, folder), (_SHARED_HEADERS[0], _SHARED_HEADERS[1:])):
        if importlib.resources.files(place[0]).joinpath(*place[1], file).is_file():
            return (*place, file)
    raise FileNotFoundError(
        f'{where}: no "{file}" beside it nor in {display_name(*_SHARED_HEADERS)}'
    )


class Library:
    """The compiled kernels of one kind of device.

    Parameters
    ----------
    compile_module : callable
        ``compile_module(text, name, options, expressions, architecture)`` returns an object with
        ``get_function(expression)``; `architecture` None: that of the current device, without what
        only this one has.
    """

    _lock: threading.Lock

    def __init__(self, compile_module: Callable[..., Any]) -> None:
        self._compile = compile_module
        self._functions: dict[Kernel, Any] = {}  # Kernel -> function
        child_lock(self)  # what is there is whole: functions come when their file is compiled

    def function(self, kernel: Kernel) -> Any:
        """The compiled function of a `Kernel`; its whole file is compiled when first asked for one."""
        try:
            return self._functions[kernel]
        except KeyError:
            pass
        with self._lock:
            if kernel not in self._functions:
                self._load(kernel.source, self._compiled_with(kernel))
        return self._functions[kernel]

    def _compiled_with(self, kernel):
        """The kernels of the module that this one is asked for: its file's."""
        return of_source(kernel.source)

    def _load(self, source, kernels):
        (architecture,) = {kernel.architecture for kernel in kernels}
        module = self._compile(
            source_text(*source),
            display_name(*source),
            OPTIONS,
            tuple(kernel.name for kernel in kernels),
            architecture,
        )
        self._functions.update({k: module.get_function(k.name) for k in kernels})
