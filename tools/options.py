"""Command line options that several subcommands share, spelt as llama-bench spells them."""

from __future__ import annotations

import argparse

__all__ = [
    "KV_TYPES",
    "METHODS",
    "MIB",
    "UsageError",
    "add_sweep",
    "choices",
    "fill_list_defaults",
    "new_parser",
    "positive",
]

MIB = 2**20
METHODS = ("auto", "steps")
KV_TYPES = ("f32", "f16", "q8_0")


class UsageError(Exception):
    """Bad use of a command that argparse cannot see; its text is the message."""


def whole_numbers(minimum: int):
    """An argparse type: ``"512,2048"`` -> [512, 2048], each at least `minimum`."""

    def parse(text):
        values = []
        for part in text.split(","):
            try:
                value = int(part)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{part!r} is not a whole number") from None
            if value < minimum:
                raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
            values.append(value)
        return values

    return parse


def positive(text):
    """An argparse type: one number of at least 1."""
    values = whole_numbers(1)(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a list; give one number")
    return values[0]


def choices(allowed):
    """An argparse type: ``"auto,steps"`` -> ["auto", "steps"], each one of `allowed`."""

    def parse(text):
        values = text.split(",")
        for value in values:
            if value not in allowed:
                raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(allowed)}")
        return values

    return parse


def add_sweep(parser, *, context, ubatch, amb):
    """The options whose every combination is a row: context, u-batch, budget, method, K/V, threads.

    Parameters
    ----------
    context, ubatch, amb : list of int
        Defaults. Each option takes a comma list and may be given several times.
    """
    count = whole_numbers(1)
    lists = [
        (("-p", "-c", "--n-prompt"), "N", count, context, "tokens of the prompt: keys"),
        (("-ub", "--ubatch-size"), "N", count, ubatch, "tokens of a u-batch: query rows"),
        (("-amb", "--attn-max-batch"), "MIB", whole_numbers(0), amb, "budget in MiB, 0: no cap"),
        (("--method",), "NAME", choices(METHODS), METHODS, "auto: best tiles; steps: whole K*Q of some heads"),
        (("--kv-type",), "TYPE", choices(KV_TYPES), ["f32"], f"type of K and V: {', '.join(KV_TYPES)}"),
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


def fill_list_defaults(args):
    """Put the defaults of `add_sweep` where nothing was given, and drop what is asked for twice."""
    from lowlevel.cpu.threads import resolve_n_threads

    for name, default in args.list_defaults.items():
        given = getattr(args, name) or default or [resolve_n_threads(None)]
        setattr(args, name, list(dict.fromkeys(given)))


def new_parser(subparsers, name, **options):
    """A subcommand's parser that keeps the layout of its help text and knows ``--json``."""
    parser = subparsers.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
