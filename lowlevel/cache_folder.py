"""Where kqcap keeps what it makes once and uses again: compiled kernels, the simulator's libraries, a model file.

In the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``) below ``kqcap``, or, where nothing can be
written there, below the system's temporary folder. Never beside the package: what pip installed, pip removes.
Code from these folders is executed, so none that another user could write to is taken.
"""

import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

__all__ = [
    "KERNELS",
    "MODELS",
    "SIMULATOR",
    "is_writable",
    "parents",
    "temporary",
    "usable",
    "users_own",
]

# Numba's machine code of CPU kernels; what g++ made of CUDA kernels; the model file of ``kqcap bench``.
KERNELS, SIMULATOR, MODELS = "kernels", "cudasim", "models"


def parents() -> tuple[pathlib.Path, pathlib.Path]:
    """kqcap's folder in the user's cache, and the one among the temporary files; they need not be there."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return pathlib.Path(cache) / "kqcap", pathlib.Path(tempfile.gettempdir()) / f"kqcap-{user}"


def users_own(name: str) -> pathlib.Path:
    """The folder for `name` in the user's cache; it need not be there, nor be writable."""
    return parents()[0] / name


def usable(name: str) -> Iterator[pathlib.Path]:
    """Folders for `name` that can be written to and are nobody else's, made where they are missing, best first."""
    if is_writable(users_own(name)):
        yield users_own(name)
    yield from temporary(name)


def temporary(name: str) -> Iterator[pathlib.Path]:
    """The folder for `name` among the temporary files, made where it is missing; nothing if it is not ours."""
    parent = parents()[1]
    if is_writable(parent / name) and _is_ours(parent):
        yield parent / name


def is_writable(folder: pathlib.Path) -> bool:
    """Whether files can be made in `folder`, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_ours(folder):
    """Anybody can make a folder of our name among the temporary files, or a link to one of ours."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
