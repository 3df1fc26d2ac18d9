"""What every subcommand that runs a model asks of it: options of `quant.load`, and one line of its memory."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import TYPE_CHECKING

from . import placing, ranks, token_bar
from .options import METHODS, MIB, MOST_MIB, UsageError, memory_size, positive, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from quant.models.model import Memory, Model

MLA = ("0", "1", "2", "3", "auto")
DEFAULT_UBATCH, DEFAULT_AMB = 2048, 256


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `opened` reads."""
    from quant.models.kv_cache import kv_type_names

    group = parser.add_argument_group(
        "how it runs", "spelt as llama.cpp and ik_llama.cpp spell them"
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        metavar="N",
        type=positive,
        help="tokens of context (default: the model's, at most 16384, or what is asked for)",
    )
    group.add_argument(
        "-ub",
        "--ubatch-size",
        metavar="N",
        type=positive,
        default=DEFAULT_UBATCH,
        help=f"tokens that pass at once (default: {DEFAULT_UBATCH})",
    )
    group.add_argument(
        "-amb",
        "--attn-max-batch",
        metavar="MIB",
        type=_mebibytes,
        default=DEFAULT_AMB,
        help=f"most MiB of attention's scratch, 0: no cap (default: {DEFAULT_AMB})",
    )
    group.add_argument(
        "-ctk",
        "--kv-type",
        metavar="TYPE",
        choices=kv_type_names(),
        default="f16",
        help=f"of the K/V cache: {', '.join(kv_type_names())} (default: f16)",
    )
    group.add_argument(
        "-mla",
        dest="attention_mla",
        choices=MLA,
        default="auto",
        help="latent attention: 0 decompressed, 1 and 2 absorbed, 3 and auto by FLOPs (default: auto)",
    )
    group.add_argument("-t", "--threads", metavar="N", type=positive, help="(default: all CPUs)")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="attention by the best tiles (auto), or whole K*Q of some heads (steps)",
    )
    group.add_argument(
        "--exact", action="store_true", help="float32 activations in products, not 8 bits"
    )
    group.add_argument(
        "--budget",
        metavar="SIZE",
        type=memory_size,
        help="cap of all memory beside the weights: K/V cache and compute, such as 512MiB; smaller groups and "
        "tiles where it asks for them (default: what the best plan takes)",
    )
    placing.add_options(group)
    ranks.add_option(group)


def _mebibytes(text):
    values = whole_numbers(0, MOST_MIB, ": it is MiB")(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a list; give one number")
    return values[0]


def mla_of(text: str) -> int | str:
    """``-mla`` as `quant.load` takes it."""
    return text if text == "auto" else int(text)


def opened(args: argparse.Namespace, say: Callable[[str], object], n_ctx: int | None) -> Model:
    """The model that a command line asks for; closed by whoever uses it.

    Parameters
    ----------
    args : argparse.Namespace
        Of `add_options`, with `model`.
    say : callable
        Told what the library warns of.
    n_ctx : int or None

    Raises
    ------
    OSError, ValueError, MemoryError
        As `quant.load`.
    UsageError
        A device that needs what is not installed.
    """
    import lowlevel

    where = placing.Placing.of(args)
    try:
        for name in where.devices:
            lowlevel.devices.get(name)
    except ImportError as error:
        raise UsageError(str(error)) from None
    if args.budget is not None and len(where.devices) > 1:
        raise UsageError("--budget: for one device; several take what the best plan does")
    pool = None if args.budget is None else lowlevel.Pool(args.budget, device=where.devices[0])
    try:
        return load(
            args.model,
            say,
            **where.options(),
            n_ctx=n_ctx,
            n_ubatch=args.ubatch_size,
            amb=args.attn_max_batch * MIB or None,
            kv_type=args.kv_type,
            mla=mla_of(args.attention_mla),
            exact=args.exact,
            method=args.method,
            n_threads=args.threads,
            pool=pool,
            comm=ranks.comm_of(args),
            split=args.split,
        )
    except BaseException:
        if pool is not None:
            pool.close()
        raise


def load(path: Any, say: Callable[[str], object], **options: Any) -> Model:
    """`quant.load`, its warnings as lines."""
    import quant

    with warnings.catch_warnings(record=True) as caught, token_bar.byte_bar("weights") as progress:
        warnings.simplefilter("always", UserWarning)
        net = quant.load(path, progress=progress, **options)
    for warning in caught:
        say(f"warning: {warning.message}")
    return net


def memory_lines(net: Model) -> str:
    """What a model takes, by what it is for, and where it lies where there are several devices."""
    return "\n".join([memory_line(net.memory), *placing.lines_of(net)])


def memory_line(memory: Memory) -> str:
    """What a model takes, by what it is for."""
    from lowlevel.sizes import format_size

    weights = [f"{format_size(memory.weights)} in the file"]
    if memory.weights_copied:
        weights.append(f"{format_size(memory.weights_copied)} copied")
    if memory.weights_made:
        weights.append(f"{format_size(memory.weights_made)} in another form")
    parts = {
        "weights": " and ".join(weights),
        "K/V cache": format_size(memory.kv_cache),
        "compute": f"{format_size(memory.compute)} planned (activations {format_size(memory.activations)}, "
        f"scratch {format_size(memory.scratch)}, over each other where they can be)",
    }
    return "memory: " + ", ".join(f"{name} {text}" for name, text in parts.items())


def broken_limits(net: Model) -> list[str]:
    """What a model promised of its memory and did not hold: nothing, unless there is a fault in it."""
    broken = []
    if net.compute_peak > net.memory.compute:
        broken.append(
            f"compute memory {net.compute_peak} bytes is over the plan's {net.memory.compute}"
        )
    for name, pool in net.pools.items():
        planned = net.memory_of[name].pool
        if pool.peak > planned:
            broken.append(
                f"the pool's peak on {name}, {pool.peak} bytes, is over the plan's {planned}"
            )
    return broken


def complain(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)
