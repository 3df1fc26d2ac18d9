"""From addresses in a compiled library to lines of the source."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from .compiler import INCLUDE

if TYPE_CHECKING:
    from collections.abc import Iterable


# Frames in these folders are ours; a kernel's author wants to see the line that called them.
_OURS = (INCLUDE, INCLUDE.parent.parent / "gpu" / "include")


def find_line(
    library: str | os.PathLike[str], offsets: Iterable[int]
) -> tuple[str | None, int | None]:
    """(file, line) of the innermost frame that lies in a kernel's own source.

    Parameters
    ----------
    library : path
    offsets : list of int
        Code offsets, innermost first.

    Returns
    -------
    (str, int) or (None, None)
    """
    frames = [frame for offset in offsets for frame in _inlined_frames(library, offset)]
    for file, line in frames:
        if not is_ours(file):
            return file, line
    return frames[0] if frames else (None, None)


def is_ours(file: str) -> bool:
    """Is `file` one of this package's headers rather than somebody's kernel?"""
    path = pathlib.Path(os.path.normpath(file))
    return any(folder in path.parents for folder in _OURS)


def _inlined_frames(library, offset):
    """Lines at `offset`, from the innermost inlined function outwards; [] where unknown."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if tool is None:
        return []
    answer = subprocess.run(
        [tool, "-i", "-e", str(library), hex(offset)], capture_output=True, text=True
    )
    frames = []
    for row in answer.stdout.splitlines():
        file, _, line = row.split(" (")[0].rpartition(":")
        if file and file != "??" and line.isdigit() and int(line):
            frames.append((file, int(line)))
    return frames
