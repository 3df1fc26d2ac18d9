"""The model files that ``kqcap bench`` runs when none is named: made once, kept in a cache folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from lowlevel import cache_folder

from ..options import UsageError

__all__ = ["ATTENTION", "WHOLE", "path"]

GEOMETRY = "deepseek-v2-lite"
QTYPE = "IQ4_NL"


class DefaultFile(NamedTuple):
    """A file: its name, sizes where they differ from those of GEOMETRY, and whether it has other tensors than
    attention's.

    The name tells what is inside: change it with the contents, and old caches are left alone.
    """

    name: str
    sizes: dict[str, Any]
    only_attention: bool


ATTENTION = DefaultFile(f"{GEOMETRY}-attention-1-layer-{QTYPE}-v1.gguf", dict(n_layer=1), True)
# All 27 layers, by which llama.cpp and ik_llama.cpp know the model, heads of its size; narrow, so that a prompt of
# some thousand tokens takes seconds on two cores, most of them in attention.
WHOLE = DefaultFile(
    f"{GEOMETRY}-narrow-{QTYPE}-v1.gguf",
    dict(
        n_embd=512,
        n_head=8,
        n_head_kv=8,
        n_ff=1024,
        n_expert=8,
        n_expert_used=2,
        n_ff_expert=128,
        n_vocab=1024,
        mla_form="fused",
    ),
    False,
)


def path(
    advance: Callable[[int, int], object] | None = None, file: DefaultFile = ATTENTION
) -> pathlib.Path:
    """The file, made at the first use in the first folder that can be written to.

    Parameters
    ----------
    advance : callable, optional
        Told (bytes written, bytes in all) while the file is made.
    file : DefaultFile

    Raises
    ------
    UsageError
        There is no such folder.
    """
    found = cache_folder.users_own(cache_folder.MODELS) / file.name
    if _is_whole(found):  # even if nothing more can be written there
        return found
    refused: object = "none that is ours can be written to"
    for folder in cache_folder.usable(cache_folder.MODELS):
        if _is_whole(folder / file.name):
            return folder / file.name
        try:
            return _make(folder, file, advance)
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


def _make(folder, file, advance):
    from quant.models.named_geometries import named_geometry
    from quant.models.synthetic.make_gguf import make_gguf

    target = folder / file.name
    geometry = named_geometry(GEOMETRY).resized(**file.sizes)
    # overwrite: another process may be making the same file; either one is whole
    make_gguf(
        target,
        geometry,
        QTYPE,
        only_attention=file.only_attention,
        overwrite=True,
        progress=advance,
    )
    return target
