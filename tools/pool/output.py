"""``kqcap pool timeline`` and ``export``: files, written whole or not at all, and nowhere but where asked."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from ..options import UsageError
from .common import shown

if TYPE_CHECKING:
    import argparse


def add_timeline_options(parser: argparse.ArgumentParser) -> None:
    _add_outputs(
        parser,
        "the picture, .html or .png (needs matplotlib; default: FILE.html); may be given twice",
    )
    parser.add_argument("--json", action="store_true", help="print the picture's data instead")


def run_timeline(args: argparse.Namespace) -> int:
    from lowlevel.inspect import timeline

    data = timeline.timeline(args.file)
    if args.json:
        from ..tables import print_json

        print_json(data)
        return 0
    makers = {".html": timeline.html, ".png": timeline.png}
    outputs = args.output or [f"{args.file}.html"]
    for out in outputs:
        if pathlib.Path(out).suffix not in makers:
            raise UsageError(f"-o: a name that ends in .html or .png; got {out!r}")
        _check_output(out, args)
    try:
        pictures = [makers[pathlib.Path(out).suffix](data) for out in outputs]
    except ImportError as error:
        raise UsageError(str(error)) from None
    for out, picture in zip(outputs, pictures, strict=True):
        _write_output(out, picture)
    return 0


def add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("torch", "rmm"),
        required=True,
        help="torch: a pickle for pytorch.org/memory_viz; rmm: RMM's CSV log",
    )
    _add_outputs(parser, "(default: FILE.pickle or FILE.csv)")
    parser.add_argument(
        "--json", action="store_true", help="print as JSON what the file would hold instead"
    )


def run_export(args: argparse.Namespace) -> int:
    from lowlevel.inspect.export import contents, export

    if args.json:
        from ..tables import print_json

        print_json(contents(args.file, args.format))
        return 0
    suffix = {"torch": "pickle", "rmm": "csv"}[args.format]
    if args.output and len(args.output) > 1:
        raise UsageError("-o: give one file")
    (out,) = args.output or [f"{args.file}.{suffix}"]
    _check_output(out, args)
    _write_output(out, export(args.file, args.format))
    return 0


def _add_outputs(parser, help_text):
    parser.add_argument("-o", "--output", metavar="OUT", action="append", help=help_text)
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")


def _check_output(out, args):
    path = pathlib.Path(out)
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        raise UsageError(f"-o {out}: name a file in a folder that exists")
    if path.exists() and path.samefile(args.file):
        raise UsageError(f"-o {out}: is the file that is read")
    if path.exists() and not args.force:
        raise UsageError(f"-o {out}: exists; --force replaces it")


def _write_output(out, data):
    """Whole or not at all, and nowhere else."""
    import tempfile

    from ..tables import note

    path = pathlib.Path(out)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, path)
    finally:
        pathlib.Path(unfinished).unlink(missing_ok=True)
    note(f"{shown(out, limit=500)}: {len(data):,} bytes")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
