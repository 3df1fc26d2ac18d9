"""Whether the packages that run are kqcap's own: `lowlevel` and `quant` are names that others use as well.

Two distributions with a package of one name share its folder: the later one overwrites files of the other,
and a removal takes files away from both. Only the standard library is used here, before anything of ours that
could be theirs is imported.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Callable

__all__ = ["PACKAGES", "InstallationError", "check"]

PACKAGES = ("lowlevel", "quant")
_SHOWN = 3


class InstallationError(Exception):
    """A package of ours is not ours; the message says which, whose it is and what to do."""


def check(warn: Callable[[str], object] | None = None) -> None:
    """Look at where our packages are imported from, and, if pip installed them, at what lies there.

    Parameters
    ----------
    warn : callable, optional
        Told, in a line of text, of files that are not ours but overwrote none (default: to standard error).

    Raises
    ------
    InstallationError
        A package is found elsewhere than beside this one, or its ``__init__.py`` is another's.
    """
    home = pathlib.Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        _check_origin(package, home)
    distribution = _installed_at(home)
    if distribution is None:
        return  # a checkout
    recorded = {str(file): file for file in distribution.files}
    for package in PACKAGES:
        init = recorded.get(f"{package}/__init__.py")
        if init is not None and _was_replaced(init):
            raise InstallationError(
                f"{home / package} holds another package's __init__.py{_owners([str(init)])}: the two share a name "
                "and cannot be installed side by side. Give kqcap a virtual environment of its own, or "
                "uninstall the other and reinstall kqcap"
            )
    foreign = [
        path
        for package in PACKAGES
        for path in _files_below(home / package, home)
        if path not in recorded
    ]
    if foreign:
        names = ", ".join(foreign[:_SHOWN]) + (", ..." if len(foreign) > _SHOWN else "")
        (warn or _print)(
            f"kqcap: warning: {home} holds {len(foreign)} file(s) in kqcap's packages that are not "
            f"kqcap's{_owners(foreign)}: {names}. Another package of that name is or was installed here; a "
            "virtual environment of its own keeps kqcap whole"
        )


def _print(text):
    print(text, file=sys.stderr)


def _check_origin(package, home):
    module = sys.modules.get(package)
    origin = (
        module.__file__ if module else getattr(importlib.util.find_spec(package), "origin", None)
    )
    expected = home / package / "__init__.py"
    if origin is None or pathlib.Path(origin).resolve() != expected:
        raise InstallationError(
            f"{package} is imported from {origin or 'nowhere'}, not from {expected}: something of that name goes "
            "first on Python's path (a file in this folder, PYTHONPATH, another package). Rename it, or "
            "give kqcap a virtual environment of its own"
        )


def _installed_at(home):
    """kqcap's distribution if its files are the ones here, else None."""
    try:
        distribution = importlib.metadata.distribution("kqcap")
    except importlib.metadata.PackageNotFoundError:
        return None
    here = pathlib.Path(distribution.locate_file("")).resolve() == home
    return distribution if here and distribution.files else None


def _files_below(folder, home):
    """Names of files relative to `home`, as RECORD has them; no bytecode, no caches of older versions."""
    return sorted(
        path.relative_to(home).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def _was_replaced(file):
    """Whether a recorded file has other contents than pip wrote."""
    if file.hash is None:
        return False
    try:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
    except OSError:
        return True
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value


def _owners(paths):
    """ " (of NAME VERSION, ...)" for the other distributions that say these files are theirs; "" if none does."""
    wanted, names = set(paths), []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name != "kqcap" and any(str(file) in wanted for file in distribution.files or ()):
            names.append(f"{name} {distribution.version}")
    return f" (of {', '.join(sorted(set(names)))})" if names else ""
