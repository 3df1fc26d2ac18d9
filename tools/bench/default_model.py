"""The model file that ``kqcap bench`` runs when none is named: made once, kept in a cache folder."""

from __future__ import annotations

import os
import pathlib
import tempfile

from ..options import UsageError

__all__ = ["path"]

# The name tells what is inside: change it with the contents, and old caches are left alone.
GEOMETRY = "deepseek-v2-lite"
QTYPE = "IQ4_NL"
NAME = f"{GEOMETRY}-attention-1-layer-{QTYPE}-v1.gguf"


def path(advance=None) -> pathlib.Path:
    """The file, made at the first use in the first folder that can be written to.

    Parameters
    ----------
    advance : callable, optional
        Told (bytes written, bytes in all) while the file is made.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    folders = [folder for folder in _folders() if _is_ours(folder)]
    for folder in folders:
        if _is_whole(folder / NAME):
            return folder / NAME
    refused = "none is ours"
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _make(folder / NAME, advance)
        except OSError as error:
            refused = error
    raise UsageError(f"no folder to keep a model file in ({refused}); name a file with -m")


def _is_whole(file):
    """Whether the file is there and undamaged, as far as its header tells: else it is made again."""
    import quant

    try:
        with quant.open(file):
            return True
    except (OSError, ValueError):
        return False


def _make(target, advance):
    from quant.models.geometry import named_geometry
    from quant.models.synthetic.make_gguf import make_gguf

    geometry = named_geometry(GEOMETRY).resized(n_layer=1)
    # overwrite: another process may be making the same file; either one is whole
    make_gguf(target, geometry, QTYPE, only_attention=True, overwrite=True, progress=advance)
    return target


def _folders():
    """The user's cache folder, then one of the user's own among the temporary files."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return [pathlib.Path(cache) / "kqcap", pathlib.Path(tempfile.gettempdir()) / f"kqcap-{user}"]


def _is_ours(folder):
    """Anybody can make a folder of our name among the temporary files."""
    try:
        return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return True  # not there yet, or `mkdir` will say why not
