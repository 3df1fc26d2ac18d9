"""The model file that ``kqcap bench`` runs when none is named: made once, kept in a cache folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from lowlevel import cache_folder

from ..options import UsageError

__all__ = ["path"]

# The name tells what is inside: change it with the contents, and old caches are left alone.
GEOMETRY = "deepseek-v2-lite"
QTYPE = "IQ4_NL"
NAME = f"{GEOMETRY}-attention-1-layer-{QTYPE}-v1.gguf"


def path(advance: Callable[[int, int], object] | None = None) -> pathlib.Path:
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
    found = cache_folder.users_own(cache_folder.MODELS) / NAME
    if _is_whole(found):  # even if nothing more can be written there
        return found
    refused: object = "none that is ours can be written to"
    for folder in cache_folder.usable(cache_folder.MODELS):
        if _is_whole(folder / NAME):
            return folder / NAME
        try:
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
    from quant.models.named_geometries import named_geometry
    from quant.models.synthetic.make_gguf import make_gguf

    geometry = named_geometry(GEOMETRY).resized(n_layer=1)
    # overwrite: another process may be making the same file; either one is whole
    make_gguf(target, geometry, QTYPE, only_attention=True, overwrite=True, progress=advance)
    return target
