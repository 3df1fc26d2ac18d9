"""Says, once a process, that kernels are being compiled: a first call may take many seconds on that.

One line on standard error when the first kernel is not found in the cache; where that is a terminal, a line below
it counts on, and is overwritten by whatever comes next.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib


# Where it is said: None for nowhere, "stderr" for what sys.stderr is at the time.
stream = "stderr"

_lock = threading.Lock()
_begun = None  # when the first kernel of this process was begun (seconds)
_n_compiled = 0


def begin(kept_in: pathlib.Path | None) -> None:
    """A kernel is about to be compiled.

    Parameters
    ----------
    kept_in : os.PathLike or None
        The folder that its code will be kept in.
    """
    global _begun
    with _lock:
        if _begun is not None:
            return
        _begun = time.monotonic()
    where = (
        f"once; kept in {kept_in}"
        if kept_in
        else "anew in each process: no cache folder can be written"
    )
    _say(f"kqcap: compiling kernels for this CPU ({where}) ...\n")


def end() -> None:
    """A kernel has been compiled."""
    global _n_compiled
    with _lock:
        _n_compiled += 1
        seconds = time.monotonic() - (_begun or 0.0)
        text = f"  {_n_compiled} kernels in {seconds:.0f} s"
    if _file() is not None and _file().isatty():
        _say(f"{text}\033[K\r")  # what is written next goes over it


def n_compiled() -> int:
    """Kernels that this process has compiled: what was timed meanwhile was no measure of them."""
    return _n_compiled


def _say(text):
    file = _file()
    if file is not None:
        try:
            file.write(text)
            file.flush()
        except (OSError, ValueError):  # closed, or nobody reads it
            pass


def _file():
    return sys.stderr if stream == "stderr" else stream
