"""The ``kqcap`` command: reads the command line, hands over to a subcommand, maps errors to exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading

from . import installation, ranks
from .options import INTERRUPTED, CommandParser, UsageError
from .plain_text import make_streams_robust

DESCRIPTION = "Whole GGUF models over very long contexts, inside a hard memory budget."
EXIT_CODES = "exit codes: 0 held, 1 a checked limit was broken, 2 bad use"
BAD_USE = 2
SUBCOMMANDS = ("run", "bench", "plan", "make-gguf", "pool", "cache")


def version() -> str:
    from lowlevel.version import __version__

    return __version__


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kqcap", description=DESCRIPTION, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"kqcap {version()}")
    subparsers = parser.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=CommandParser,
    )
    for name in SUBCOMMANDS:
        _module(name).add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``kqcap``.

    Parameters
    ----------
    argv : list of str, optional
        The arguments without the program's name; None: those of the process.

    Returns
    -------
    int
        The exit code: 0 held, 1 a checked limit was broken, 2 bad use. As argparse does,
        ``--help``, ``--version`` and a malformed command line raise SystemExit.
    """
    make_streams_robust()
    try:
        installation.check()
    except installation.InstallationError as error:
        print(f"kqcap: error: {error}", file=sys.stderr)
        return BAD_USE
    args = build_parser().parse_args(argv)
    try:
        with _ended_by_exceptions(), ranks.joined(args):
            code = _module(args.command).run(args) or 0
            if code == INTERRUPTED:
                ranks.end_others(args)
            return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) has left: keep Python from failing again while it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, OSError, ValueError, MemoryError) as error:
        # what the library says of bad input: one line, no traceback, and of several ranks by the first
        if ranks.is_first(args):
            print(f"kqcap {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return BAD_USE


@contextlib.contextmanager
def _ended_by_exceptions():
    """Within it SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt: what is half written,
    and folders for a while, are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def end(number, frame):
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the removal short
        raise SystemExit(128 + number)

    # What was told to ignore them (nohup) goes on doing so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, end)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _module(subcommand):
    """A subcommand's module; imported late, when it is known that what it imports is ours."""
    return importlib.import_module(f".{subcommand.replace('-', '_')}", __package__)


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
