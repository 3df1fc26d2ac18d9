"""``kqcap cache``: what kqcap keeps outside its package, how large it is, and its removal."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from typing import TYPE_CHECKING

from .options import new_parser

if TYPE_CHECKING:
    import argparse
    from typing import Any


DESCRIPTION = """\
Show what kqcap keeps to use again: compiled CPU kernels, the CUDA simulator's libraries, what was compiled for
a GPU, the model file of `kqcap bench`. All of it is made anew when it is missing; uninstalling kqcap leaves it
behind. What NUMBA_CACHE_DIR or CUDASIM_CACHE_DIR name is yours, and neither shown nor removed."""

COLUMNS = [("folder", "left"), ("files", "right"), ("MiB", "right")]


def add_parser(subparsers: Any) -> None:
    parser = new_parser(
        subparsers,
        "cache",
        help="what is kept in the user's cache folder; --clear removes it",
        description=DESCRIPTION,
    )
    parser.add_argument("--clear", action="store_true", help="remove all of it")


def run(args: argparse.Namespace) -> int:
    from .tables import mib, note, print_json, print_table

    entries = [_described(path) for path in _kept()]
    if args.clear:
        for entry in entries:
            _remove(pathlib.Path(entry["path"]))
    if args.json:
        print_json({"entries": entries, "cleared": args.clear})
        return 0
    if entries:
        print_table(COLUMNS, [[e["path"], f"{e['files']:,}", mib(e["bytes"])] for e in entries])
    if not entries:
        note("nothing is kept")
    elif args.clear:
        note("removed")
    return 0


def _kept():
    """The folders and files of ours that are there."""
    from lowlevel import cache_folder
    from lowlevel.cuda.cupy_api import cubin_folder

    kept = []
    for folder in cache_folder.parents():
        with contextlib.suppress(OSError):
            kept += sorted(folder.iterdir())
    with contextlib.suppress(OSError):
        kept += sorted(cubin_folder().glob("kqcap-*"))
    return kept


def _described(path):
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return dict(path=str(path), files=len(files), bytes=sum(_size(file) for file in files))


def _size(file):
    try:
        return file.lstat().st_size
    except OSError:  # another process has just removed it
        return 0


def _remove(path):
    """Remove a folder or file; what another process removed meanwhile is no error, what cannot be removed is."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
