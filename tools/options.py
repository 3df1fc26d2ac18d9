"""Command line options that several subcommands share, spelt as llama-bench spells them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any


__all__ = [
    "INTERRUPTED",
    "KV_TYPES",
    "METHODS",
    "MIB",
    "CommandParser",
    "UsageError",
    "add_sweep",
    "choices",
    "fill_list_defaults",
    "memory_list",
    "memory_size",
    "new_parser",
    "positive",
]

MIB = 2**20
INTERRUPTED = 130  # exit code after Ctrl-C
METHODS = ("auto", "steps")
KV_TYPES = ("f32", "f16", "q8_0")
MOST = 2**31 - 1  # tokens: engines number them in 32 bits
MOST_MIB = 2**22  # 4 TiB: what is larger was meant as bytes
LEAST_MEMORY_MIB = 128  # no device has less: a plain 24 was meant as GiB


class UsageError(Exception):
    """Bad use of a command that argparse cannot see; its text is the message."""


def whole_numbers(minimum: int, maximum: int = MOST, hint: str = "") -> Callable[[str], list[int]]:
    """An argparse type: ``"512,2048"`` -> [512, 2048], each from `minimum` to `maximum`."""

    def parse(text):
        values = []
        for part in text.split(","):
            try:
                value = int(part)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{part!r} is not a whole number") from None
            if value < minimum:
                raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
            if value > maximum:
                raise argparse.ArgumentTypeError(f"{value} is above {maximum}{hint}")
            values.append(value)
        return values

    return parse


def memory_size(text: str) -> int:
    """An argparse type: memory of a device in bytes. A plain number is MiB, as in llama.cpp's options."""
    from lowlevel.sizes import parse_size

    plain = text.strip().isascii() and text.strip().isdigit()
    try:
        n_bytes = parse_size(f"{text}MiB" if plain else text, "size")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: write MiB (24576), 24GiB, 24G or 24GB"
        ) from None
    if n_bytes > MOST_MIB * MIB:
        raise argparse.ArgumentTypeError(
            f"{text!r} is {n_bytes / 2**40:.4g} TiB, more than any device has"
            + (f"; a plain number is MiB: for bytes write {text.strip()}B" if plain else "")
        )
    return n_bytes


def memory_list(text: str) -> list[int]:
    """An argparse type: ``"24GiB,16GiB"`` -> bytes of each, above 0."""
    sizes = []
    for part in text.split(","):
        n_bytes = memory_size(part)
        if not n_bytes:
            raise argparse.ArgumentTypeError(f"{text!r}: a device without memory")
        if part.strip().isdigit() and n_bytes < LEAST_MEMORY_MIB * MIB:
            raise argparse.ArgumentTypeError(
                f"a plain number is MiB, and {part.strip()} MiB is less than any device has; "
                f"write {part.strip()}GiB, or {part.strip()}MiB if that is meant"
            )
        sizes.append(n_bytes)
    return sizes


def positive(text: str) -> int:
    """An argparse type: one number of at least 1."""
    values = whole_numbers(1)(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a list; give one number")
    return values[0]


def choices(allowed: Collection[str]) -> Callable[[str], str]:
    """An argparse type: ``"auto,steps"`` -> ["auto", "steps"], each one of `allowed`."""

    def parse(text):
        values = text.split(",")
        for value in values:
            if value not in allowed:
                raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(allowed)}")
        return values

    return parse


def add_sweep(
    parser: argparse.ArgumentParser,
    *,
    context: list[int],
    ubatch: list[int],
    amb: list[int],
    kv_types: Collection[str] = KV_TYPES,
    least_context: int = 1,
) -> None:
    """The options whose every combination is a row: context, u-batch, budget, method, K/V, threads.

    Parameters
    ----------
    context, ubatch, amb : list of int
        Defaults. Each option takes a comma list and may be given several times.
    kv_types : collection of str
        Those that are taken.
    least_context : int
    """
    count = whole_numbers(1)
    lists = [
        (("-p", "-c", "--n-prompt"), "N", whole_numbers(least_context), context, "tokens of the prompt: keys"),
        (("-ub", "--ubatch-size"), "N", count, ubatch, "tokens of a u-batch: query rows"),
        (("-amb", "--attn-max-batch"), "MIB", whole_numbers(0, MOST_MIB, ": it is MiB"), amb, "budget in MiB, 0: no cap"),
        (("--method",), "NAME", choices(METHODS), METHODS, "auto: best tiles; steps: whole K*Q of some heads"),
        (("-ctk", "--kv-type"), "TYPE", choices(kv_types), ["f32"], f"type of K and V: {', '.join(kv_types)}"),
        (("-t", "--threads"), "N", count, None, "threads"),
    ]  # fmt: skip
    defaults = {}
    for flags, metavar, parse, default, help_text in lists:
        shown = "all CPUs" if default is None else ",".join(map(str, default))
        # argparse's "extend" would append to a default: `fill_list_defaults` puts it in later
        action = parser.add_argument(
            *flags,
            metavar=metavar,
            type=parse,
            action="extend",
            help=f"{help_text} (default: {shown})",
        )
        defaults[action.dest] = default
    parser.set_defaults(list_defaults=defaults)


def fill_list_defaults(args: argparse.Namespace) -> None:
    """Put the defaults of `add_sweep` where nothing was given, and drop what is asked for twice."""
    from lowlevel.cpu.threads import resolve_n_threads

    for name, default in args.list_defaults.items():
        given = getattr(args, name) or default or [resolve_n_threads(None)]
        setattr(args, name, list(dict.fromkeys(given)))


class CommandParser(argparse.ArgumentParser):
    """A subcommand's parser, which takes positional arguments wherever they stand: ``run MODEL --chat PROMPT``.

    argparse (before 3.13) gives a group of them to all positionals at once, optional ones that come later included.
    """

    _is_intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse.ArgumentParser.parse_known_args`."""
        takes_rest = any(
            action.nargs in (argparse.PARSER, argparse.REMAINDER)
            for action in self._get_positional_actions()
        )
        if self._is_intermixed or takes_rest:
            return super().parse_known_args(args, namespace)
        self._is_intermixed = True  # what follows calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False


def new_parser(subparsers: Any, name: str, **options: Any) -> argparse.ArgumentParser:
    """A subcommand's parser that keeps the layout of its help text and knows ``--json``."""
    parser = subparsers.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
