"""``kqcap make-gguf``: a model file of a named geometry with random weights, so that anybody has one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from .options import UsageError, new_parser, positive
from .tables import note, print_json, print_table

if TYPE_CHECKING:
    from typing import Any


DESCRIPTION = """\
Write a GGUF model file with seeded random weights: tensor names, metadata and a minimal
tokenizer as llama.cpp expects them. The sizes are those of a named model, changed by option."""

EPILOG = """\
A format whose blocks a row cannot fill is replaced as llama.cpp does (Q2_K by IQ4_NL, Q4_K by Q5_0, these by F16).
Norms and routers are F32. Where the heads make up the width (llama-8b), --embd and --heads follow each other,
and the head size follows where both are given. Before anything is written it is said how large the file will be
and whether llama.cpp or ik_llama.cpp will refuse to load it, and why; above 2 GB you are asked first, or must
have given --yes.

examples:
  kqcap make-gguf llama-8b --layers 2 --embd 512 --vocab 512 small.gguf
  kqcap make-gguf deepseek-r1 --layers 2 --embd 2048 --heads 16 --ff 2048 --expert-ff 512 --experts 8 \
        --vocab 512 --type IQ4_NL small.gguf
  kqcap make-gguf deepseek-v2-lite --type IQ4_NL --yes lite.gguf
  kqcap make-gguf deepseek-r1 --only attention --layers 1 --type Q2_K attention.gguf
  kqcap make-gguf deepseek-r1 --type UD-Q2_K_XL --type-map 'blk[.][0-2][.]=Q8_0' --dry-run r1.gguf"""

# option, attribute of ModelGeometry, help
SIZES = (
    ("--layers", "n_layer", "layers"),
    ("--dense-layers", "n_layer_dense", "leading layers without experts"),
    ("--embd", "n_embd", "width of the embedding"),
    ("--heads", "n_head", "query heads"),
    ("--heads-kv", "n_head_kv", "K/V heads (default: in proportion to --heads)"),
    ("--d-k", "d_k", "head size of Q and K, RoPE part included"),
    ("--d-v", "d_v", "head size of V"),
    ("--rope", "n_rot", "dimensions of a head that RoPE turns"),
    ("--q-lora", "q_lora_rank", "MLA: width of the compressed query, 0: not compressed"),
    ("--kv-lora", "kv_lora_rank", "MLA: width of the latent"),
    ("--ff", "n_ff", "width of the feed-forward layers"),
    ("--expert-ff", "n_ff_expert", "width of an expert"),
    ("--experts", "n_expert", "experts a layer"),
    ("--experts-used", "n_expert_used", "experts a token"),
    ("--experts-shared", "n_expert_shared", "experts of all tokens"),
    ("--expert-groups", "n_expert_group", "groups that experts are chosen from (0: none)"),
    ("--expert-groups-used", "n_expert_group_used", "groups a token"),
    ("--predictors", "n_predictor", "layers behind the others that predict further tokens"),
    ("--window", "window", "keys that a layer with a window sees"),
    (
        "--window-period",
        "window_period",
        "of so many layers the last sees all keys (0: the architecture's own)",
    ),
    ("--vocab", "n_vocab", "tokens of the vocabulary, at least 260"),
    ("--ctx", "context_length", "context length, in the metadata only"),
)
ASK_ABOVE = 2 * 10**9  # bytes
COLUMNS = [("type", "left"), ("tensors", "right"), ("weights", "right"), ("bytes", "right")]


def add_parser(subparsers: Any) -> None:
    from quant.models.geometry import MLA_FORMS
    from quant.models.named_geometries import GEOMETRIES

    parser = new_parser(
        subparsers,
        "make-gguf",
        help="write a model file with random weights",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "geometry", metavar="GEOMETRY", choices=GEOMETRIES, help=", ".join(GEOMETRIES)
    )
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--type",
        default="Q8_0",
        help="format of the bulk, or a mix such as Q4_K_M, IQ4_XS, IQ2_XXS, UD-Q2_K_XL, UD-IQ1_S (default: Q8_0)",
    )
    parser.add_argument(
        "--type-map",
        action="append",
        default=[],
        type=_form_and_type,
        metavar="REGEX=TYPE",
        help="format of tensors whose names a regular expression is found in; may be given several times, the "
        "first that matches counts",
    )
    parser.add_argument("--output-type", metavar="TYPE", help="format of output.weight")
    parser.add_argument("--embd-type", metavar="TYPE", help="format of token_embd.weight")
    parser.add_argument(
        "--pure", action="store_true", help="no better formats for some tensors than --type"
    )
    parser.add_argument("--only", choices=("attention",), help="leave out all other tensors")
    parser.add_argument(
        "--mla",
        dest="mla_form",
        choices=MLA_FORMS,
        help="MLA: attn_k_b and attn_v_b as current llama.cpp (split), the older attn_kv_b (fused), "
        "or both, as ik_llama.cpp's files (default: split)",
    )
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.add_argument(
        "-y", "--yes", action="store_true", help="write a file of more than 2 GB without asking"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be written")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="(default: all CPUs)")
    sizes = parser.add_argument_group("sizes, where they differ from those of GEOMETRY")
    for option, name, help_text in SIZES:
        sizes.add_argument(option, dest=name, type=_count, metavar="N", help=help_text)


def run(args: argparse.Namespace) -> int:
    from quant.models.named_geometries import named_geometry
    from quant.models.synthetic.load_elsewhere import load_failures
    from quant.models.synthetic.make_gguf import make_gguf, plan_tensors

    names = [name for _, name, _ in SIZES] + ["mla_form"]
    changed = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    geometry = named_geometry(args.geometry).resized(**changed)
    by_role = {"output": args.output_type, "token_embd": args.embd_type}
    choices = dict(
        types={role: qtype for role, qtype in by_role.items() if qtype is not None},
        type_map=args.type_map,
        pure=args.pure,
        only_attention=args.only == "attention",
    )
    tensors = plan_tensors(geometry, args.type, **choices)
    refusals = load_failures(geometry, choices["only_attention"])
    _announce(args, named_geometry(args.geometry), geometry, changed, tensors, refusals)
    if not args.dry_run:
        _ask(args, sum(tensor.n_bytes for tensor in tensors))
    started = time.perf_counter()
    if not args.dry_run:
        with _bytes_progress() as progress:
            task = progress.add_task(os.path.basename(args.out), total=None)
            tensors = make_gguf(
                args.out,
                geometry,
                args.type,
                **choices,
                seed=args.seed,
                overwrite=args.force,
                n_threads=args.threads,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    _report(args, geometry, tensors, refusals, time.perf_counter() - started)
    return 0


def _announce(args, base, geometry, given, tensors, refusals):
    """Say on standard error what will be written: sizes that followed, bytes, who will not load it."""
    from lowlevel.sizes import format_size

    options = {name: option for option, name, _ in SIZES}
    followed = [
        f"{option} {getattr(geometry, name)}"
        for name, option in options.items()
        if name not in given and getattr(geometry, name) != getattr(base, name)
    ]
    size = format_size(sum(tensor.n_bytes for tensor in tensors))
    lines = [f"{args.out}: {size} of tensors"]
    if followed:
        lines.append(f"sizes that follow from those given: {', '.join(followed)}")
    lines += [f"{engine} will not load it: {reason}" for engine, reason in refusals]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _ask(args, n_bytes):
    """Return if a file of so many bytes is wanted; UsageError otherwise."""
    if n_bytes <= ASK_ABOVE or args.yes:
        return
    size = f"{n_bytes / 1e9:.1f} GB"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{args.out} takes {size}, more than the {ASK_ABOVE / 1e9:g} GB that are written unasked: "
            "give --yes, or fewer or smaller layers"
        )
    print(f"write {size} to {args.out}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was written")


def _report(args, geometry, tensors, refusals, seconds):
    by_type: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = by_type.setdefault(tensor.block.name, {"tensors": 0, "weights": 0, "bytes": 0})
        row["tensors"] += 1
        row["weights"] += tensor.n_weights
        row["bytes"] += tensor.n_bytes
    total = {
        key: sum(row[key] for row in by_type.values()) for key in ("tensors", "weights", "bytes")
    }
    if args.json:
        print_json(
            {
                "path": args.out,
                "written": not args.dry_run,
                "geometry": geometry.name,
                "architecture": geometry.architecture,
                "n_layer": geometry.n_layer,
                "type": args.type.upper(),
                "seed": args.seed,
                "by_type": by_type,
                **total,
                "not_loaded_by": [failure._asdict() for failure in refusals],
                "seconds": round(seconds, 3),
            }
        )
        return
    rows = [*by_type.items(), ("all", total)] if len(by_type) > 1 else by_type.items()
    print_table(
        COLUMNS,
        [
            (name, *(f"{row[key]:,}" for key in ("tensors", "weights", "bytes")))
            for name, row in rows
        ],
    )
    note(f"not written (--dry-run): {args.out}" if args.dry_run else f"{args.out}: {seconds:.1f} s")


def _bytes_progress():
    """A progress bar in bytes on standard error; it shows nothing unless that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _form_and_type(text):
    form, equals, qtype = text.rpartition("=")
    if not (form and equals and qtype):
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=TYPE, such as 'ffn_down=Q6_K'")
    return form, qtype


def _count(text):
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
