"""``kqcap bench``: which of its forms is asked for; and attention alone, under budgets and methods."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from typing import Any

from .. import placing, ranks
from ..loading import MLA
from ..options import (
    INTERRUPTED,
    KV_TYPES,
    UsageError,
    add_sweep,
    choices,
    fill_list_defaults,
    new_parser,
    positive,
    whole_numbers,
)
from .model_peers import INSTALL as ENGINES
from .peers import INSTALL as PEERS

DESCRIPTION = """\
Run a model as llama-bench does, and check what it takes: t/s of prompts (-p) and of single
tokens (-n), behind -d others, with the memory that was planned and used in the same row.
Without MODEL it is a small file of DeepSeek-V2-Lite's form (27 layers, narrow, random weights),
made once in the user's cache folder: t/s and compute memory against -amb, attention in steps
and by the best tiles; three minutes. Lists: every combination is a row.
With --attention: one layer's attention alone, on a model file's geometry and weights, with the
error against float64. With --vs and a MODEL: other engines on the same file."""

EPILOG = """\
columns:
  amb           budget in MiB of attention's scratch; 0: no cap. Budgets whose plans are equal are one row
  test          pp: tokens of a prompt at once; tg: tokens one by one; @ d: behind so many others
  t/s           median +- half the range, from 3 runs on
  K/V cache     MiB for the tokens of the test
  compute planned, used
                MiB of activations, scratch, logits and positions: what was taken when the model was
                loaded, and what its passes used of that at most
  growth        MiB by which the process grew (anonymous resident memory: mapped weights do not count)
                from before the model was loaded to after its runs: cache, compute, weights that are
                made in another form (-mla auto of files with attn_kv_b), and what else
Defaults: of a MODEL -p 512 -n 128 -d 0 -ub 2048 -amb 256 -ctk f16 -mla auto, of the small file -p 2048
-n 0 -amb 0,32,64,128 --method steps,auto. Rows appear when they are finished; Ctrl-C keeps them. Checked
limits (exit code 1): memory used is within the plan.

With --attention (-p 16384, K and V f32 by default), columns:
  method        auto: the best tiles; steps: ik_llama.cpp's way, whole K*Q of some heads at a time
  amb           budget in MiB of the pool that all scratch comes from; 0: no cap
  tile          heads x query rows x keys whose scores are worked on at a time
  steps         tiles in all; with --full tile and steps are the last u-batch's
  scratch       MiB that the plan says
  pool peak     MiB that were taken from the pool
  growth        MiB by which the process grew over its first run, in a fresh pool: the peak of
                resident memory during the run (VmHWM, reset before; VmRSS where that is not
                allowed) minus the resident memory before (VmRSS). Inputs, output, compiled code
                and BLAS's buffers are there before; freed memory that is used again does not count
  t/s           tokens a second of this one layer's attention: median +- half the range, from 3 runs on
  ratio         speed over steps at amb 0, median of the rounds (higher is faster)
  error         against float64 on sampled rows of all heads, over the largest output
Runs of all rows are interleaved, in a new order each round; budgets whose plans are equal are one run
and one row. The rows of a prompt length and type appear when they are finished; Ctrl-C keeps what is
measured. A row that cannot run says what it would need. Checked limits: pool peak equals the plan and is within the budget; error <= 5e-6
(growing with the largest score where their standard deviation is over 3).

With --device but no MODEL: ceilings and every kernel on "cuda", "cuda:1", ... or "cudasim", on random
operands; -p, -ub, -amb (attention's), -r and --only apply, --vs torch compares.

With --vs but no MODEL: dequantisation, products, attention and start-up, held against other software on the same
inputs, whose results are compared with ours first, and against what this machine can do at most,
measured in the same rounds. -t is 1,2 by default. About 8 minutes on two idle cores. Columns:
  rate          of ours, in the unit of the case's first limit
  roofline      share of fill or read bandwidth, of traffic (blocks read and weights written, without
                arithmetic), or of FMA, int8 dot or sgemm speed
  torch, ...    their time over ours in the same round, median (least-most): above 1, ours is faster;
                of several forms of a peer the fastest, with its name
  ours f16      the same with f16 K and V
  ours bf16     the same with precision="bf16", where the CPU has it
  scratch       MiB that one call takes
  bar           with --check: what this project set itself to reach (exit code 1 where it is
                missed); floor: what work as fast as traffic, or reading, alone would have reached"""

DEFAULT_REPETITIONS = 3
# Options that attention alone has no use for.
WHOLE_ONLY = {"n_gen": "-n", "n_depth": "-d", "attention_mla": "-mla"}
DEFAULT_SECONDS = 110

PARAMETERS = [
    ("n_prompt", "n_prompt"),
    ("n_ubatch", "n_ubatch"),
    ("kv_type", "type_kv"),
    ("n_threads", "threads"),
]
COLUMNS = [
    ("method", "left"),
    ("amb", "right"),
    ("tile", "right"),
    ("steps", "right"),
    ("scratch", "right"),
    ("pool peak", "right"),
    ("growth", "right"),
    ("t/s", "right"),
    ("ratio", "right"),
    ("error", "right"),
]


def add_parser(subparsers: Any) -> None:
    parser = new_parser(
        subparsers,
        "bench",
        help="t/s and memory of a model, against budgets, methods and other engines",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    from quant.models.kv_cache import kv_type_names

    parser.add_argument("target", nargs="?", metavar="MODEL", help="as -m")
    parser.add_argument(
        "-m", "--model", metavar="FILE", help="GGUF file (default: a small one, made once)"
    )
    add_sweep(
        parser,
        context=[16384],
        ubatch=[2048],
        amb=[0, 64, 128, 256, 512],
        kv_types=kv_type_names(),
        least_context=0,
    )
    parser.add_argument("-n", "--n-gen", metavar="N", type=whole_numbers(0), action="extend",
                        help="tokens that are generated one by one; 0: none")  # fmt: skip
    parser.add_argument("-d", "--n-depth", metavar="N", type=whole_numbers(0), action="extend",
                        help="tokens in the cache before the test (default: 0)")  # fmt: skip
    parser.add_argument("-mla", dest="attention_mla", metavar="N", type=choices(MLA), action="extend",
                        help="latent attention: 0 decompressed, 1 and 2 absorbed, 3 and auto by FLOPs")  # fmt: skip
    parser.add_argument("-r", "--repetitions", metavar="N", type=positive, default=None,
                        help="timed runs of each row (default: 3, or fewer, at least 1, to end "
                        f"within about {DEFAULT_SECONDS} s)")  # fmt: skip
    parser.add_argument(
        "--attention", action="store_true", help="one layer's attention alone; --full, --layer"
    )
    parser.add_argument(
        "--full", action="store_true", help="run the whole prompt, u-batch by u-batch"
    )
    parser.add_argument(
        "--layer", metavar="N", type=int, default=None, help="layer of the file (default: 0)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of activations and order (default: 0)"
    )
    ranks.add_option(parser)
    where = parser.add_argument_group("where a model lies", "with MODEL; as llama.cpp spells it")
    placing.add_options(where, default_device=None)
    versus = parser.add_argument_group(
        "against other software", "each in a process of its own; -t, -r and --seed apply"
    )
    versus.add_argument(
        "--vs",
        metavar="PEERS",
        type=choices(list(dict.fromkeys((*PEERS, *ENGINES)))),
        help=f"with MODEL: the same file in a comma list of {', '.join(ENGINES)}; without: every kernel against "
        f"{', '.join(PEERS)}, and against what the machine can do",
    )
    versus.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        help="only cases, or tests of MODEL, with these words in their name",
    )
    versus.add_argument(
        "--log2-weights",
        metavar="N",
        type=positive,
        default=None,
        help="with --device: dequantize 2**N weights, concat half as many (default: 30, simulator 13)",
    )
    versus.add_argument("--check", action="store_true", help="exit code 1 if a bar is missed")


def run(args: argparse.Namespace) -> int | None:
    if args.target is not None:
        if args.model is not None:
            raise UsageError("MODEL, -m: one model")
        args.model = args.target
    return _chosen(args)(args)


def _chosen(args):
    """What is run: a function of the command line."""
    if ranks.comm_of(args) and (args.vs or args.attention or not args.model):
        raise UsageError("--split: for kqcap bench MODEL, without --vs and --attention")
    where = placing.Placing.of(args)
    has_place = where._replace(devices=("cpu",)) != placing.Placing()
    if (has_place or (args.device and args.model)) and (args.vs or args.attention):
        raise UsageError(
            "--device, -ngl, -ts, --cpu-moe, -ot: for kqcap bench MODEL, without --vs and --attention"
        )
    if args.device and not args.model:
        if has_place:
            raise UsageError("-ngl, -ts, --cpu-moe, -ot: they place a model; name one")
        from . import device_bench

        return device_bench.run
    if args.vs and args.model and not args.attention:
        from . import model_versus

        return model_versus.run
    if args.vs:
        from . import versus

        unknown = [name for name in args.vs if name not in PEERS]
        if unknown:
            raise UsageError(f"--vs {','.join(unknown)}: for a model: kqcap bench MODEL --vs ...")
        return versus.run
    if args.check or (args.only and not args.model):
        raise UsageError("--only and --check belong to --vs or --device, --only to a MODEL as well")
    if args.only and args.attention:
        raise UsageError("--only: for whole models, --vs and --device")
    if args.log2_weights:
        raise UsageError("--log2-weights belongs to --device")
    if args.attention:
        return run_attention
    if args.full or args.layer is not None:
        raise UsageError("--full and --layer belong to --attention")
    from . import model_command

    return model_command.run


def run_attention(args: argparse.Namespace) -> int | None:
    """One layer's attention."""
    whole = [name for name in WHOLE_ONLY if getattr(args, name) is not None]
    if whole:
        raise UsageError(
            f"{', '.join(WHOLE_ONLY[name] for name in whole)}: for whole models, not --attention"
        )
    unknown = sorted(set(args.kv_type or ()) - set(KV_TYPES))
    if unknown:
        raise UsageError(f"--kv-type {','.join(unknown)}: --attention has {', '.join(KV_TYPES)}")
    if 0 in (args.n_prompt or ()):
        raise UsageError("-p 0: attention takes at least one key")
    args.layer = args.layer or 0
    fill_list_defaults(args)
    deadline = time.monotonic() + DEFAULT_SECONDS
    import quant

    from .. import tables
    from . import provenance

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.progress())
        path = args.model or _default_model(progress)
        model = stack.enter_context(quant.open(path))
        document = dict(model=str(path), layer=args.layer, full=args.full, seed=args.seed)
        document["machine"] = provenance.describe()
        document.update(_sizes(model.attention, args.layer), rows=[], interrupted=False)
        if not args.json:
            with tables.paused(progress):
                tables.note(f"{path}, layer {args.layer}")
        for n_prompt, kv_type in itertools.product(args.n_prompt, args.kv_type):
            try:
                rows, interrupted = _test(args, model, progress, deadline, n_prompt, kv_type)
            except KeyboardInterrupt:  # before anything was measured
                rows, interrupted = [], True
            document["rows"] += rows
            if rows and not args.json:
                with tables.paused(progress):
                    _print(args, document, rows)
            if interrupted:
                document["interrupted"] = True
                break
    if args.json:
        tables.print_json(document)
    if document["interrupted"]:
        n_rows = len(document["rows"])
        print(f"kqcap bench: interrupted; {n_rows} rows are measured", file=sys.stderr)
        return INTERRUPTED
    if all(row["cannot_run"] for row in document["rows"]):
        raise UsageError(document["rows"][0]["cannot_run"])
    return int(any(row["broken"] for row in document["rows"]))


def _default_model(progress):
    from . import default_model

    task = progress.add_task("model file (once)", total=1)
    try:
        return default_model.path(lambda n, total: progress.update(task, completed=n, total=total))
    finally:
        progress.remove_task(task)


def _sizes(attention, layer):
    """Head counts of one layer and head sizes."""
    n_head, n_head_kv = (
        n if isinstance(n, int) else n[layer] for n in (attention.n_head, attention.n_head_kv)
    )
    return dict(n_head=n_head, n_head_kv=n_head_kv, d_k=attention.d_k, d_v=attention.d_v)


def _test(args, model, progress, deadline, n_prompt, kv_type):
    """The finished rows of one prompt length and type of K and V, and whether they were interrupted."""
    from . import measure, workload

    ubatches = list(dict.fromkeys(min(n, n_prompt) for n in args.ubatch_size))
    n_query = n_prompt if args.full else max(_last_ubatch(n_prompt, n) for n in ubatches)
    with _task(progress, "prompt tokens", n_prompt) as advance:
        work = workload.make_workload(
            model,
            n_prompt=n_prompt,
            n_query=n_query,
            layer=args.layer,
            seed=args.seed,
            advance=advance,
        )
    prompts = {}
    with _task(progress, "float64 reference", len(ubatches)) as advance:
        for n_ubatch in ubatches:
            prompts[n_ubatch] = measure.Prompt(work, kv_type, n_ubatch, args.full, args.seed)
            advance(1)
    asked = itertools.product(ubatches, args.threads, args.method, args.attn_max_batch)
    cases = [
        measure.Case(method, amb_mib, n_ubatch, n_threads)
        for n_ubatch, n_threads, method, amb_mib in asked
    ]
    repetitions = args.repetitions or DEFAULT_REPETITIONS
    task = progress.add_task("runs", total=None)

    def advance(result):
        progress.advance(task)
        if len(result.seconds) == 1:
            progress.console.print(
                _first_words(result, prompts[result.case.n_ubatch]), highlight=False
            )

    try:
        results, interrupted = measure.measure(
            prompts,
            cases,
            repetitions=repetitions,
            deadline=None if args.repetitions else deadline,
            seed=args.seed,
            begin=lambda n_runs: progress.update(task, total=n_runs),
            advance=advance
            if progress.console.is_terminal
            else lambda result: progress.advance(task),
        )
    finally:
        progress.remove_task(task)
    by_case = {result.case: result for result in results}
    rows = [
        {
            "n_prompt": n_prompt,
            "kv_type": kv_type,
            **result.to_dict(),
            **_derived(result, by_case.get(result.case.reference), prompts[result.case.n_ubatch]),
        }
        for result in results
        if result.is_finished
    ]
    return rows, interrupted


def _first_words(result, prompt):
    """A line for the terminal once a row has been timed for the first time; the table comes later."""
    from ..tables import mib

    case = result.case
    return (
        f"  {case.method}, u-batch {case.n_ubatch}, amb {case.amb_mib or 'none'}, {case.n_threads} thread(s): "
        f"{mib(result.peak_bytes)} MiB, {prompt.n_tokens / result.seconds[0]:.2f} t/s so far"
    )


def _derived(result, reference, prompt):
    """What a row says besides its measurement."""
    from . import measure, timing

    speeds = [prompt.n_tokens / seconds for seconds in result.seconds]
    return dict(
        n_tokens=prompt.n_tokens,
        score_std=prompt.score_std,
        score_max=prompt.score_max,
        error_bound=prompt.error_bound,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        spread=timing.half_range(speeds),
        ratio=measure.ratio(result, reference),
    )


def _last_ubatch(n_prompt, n_ubatch):
    """Tokens of the last u-batch of a prompt."""
    return (n_prompt - 1) % n_ubatch + 1


@contextlib.contextmanager
def _task(progress, description, total):
    """A bar for one part of the work; yields the function that advances it."""
    task = progress.add_task(description, total=total)
    try:
        yield lambda n: progress.advance(task, n)
    finally:
        progress.remove_task(task)


def _print(args, document, rows):
    """The table of some rows, budgets that changed nothing in one."""
    from .. import tables

    merged = _merged(rows)
    what = "whole prompt" if args.full else "last u-batch of the prompt"
    counts = {len(row["seconds"]) for row in rows if not row["cannot_run"]} or {0}
    runs = f"timed runs: {'-'.join(map(str, sorted({min(counts), max(counts)})))}"
    sizes = "{n_head} heads, {n_head_kv} K/V heads, d_k {d_k}, d_v {d_v}".format(**document)
    tables.print_sweep(
        f"{sizes}; {what}; {runs}; sizes in MiB", merged, PARAMETERS, COLUMNS, _cells, n_keys=2
    )
    if len(merged) < len(rows):
        tables.note("budgets in one row have the same plan: one run stands for all of them")
    tables.note_what_cannot_run(
        [(row["needs_bytes"], row["cannot_run"]) for row in rows if row["cannot_run"]]
    )
    for row in merged:
        for broken in row["broken"]:
            tables.note(f"BROKEN: {row['method']}, amb {row['amb']}: {broken}")


def _merged(rows):
    """Rows with the text of all their budgets as "amb": one of those whose plans, and so whose runs, are equal."""
    from .measure import unbudgeted

    merged = {}
    for row in rows:
        same = {key: value for key, value in row.items() if key not in ("amb_mib", "budget")}
        if row["plan"] is not None:
            same["plan"] = unbudgeted(row["plan"])
        key = row["amb_mib"] if row["cannot_run"] else None, repr(same)
        found = merged.setdefault(key, {**row, "ambs": []})
        found["ambs"].append(row["amb_mib"])
    return [{**row, "amb": ",".join(map(str, row["ambs"]))} for row in merged.values()]


def _cells(row):
    from ..tables import mib, tile
    from .timing import speed_text

    start = [row["method"], row["amb"]]
    if row["cannot_run"]:
        needs = f"needs {mib(row['needs_bytes'])}"
        return [*start, "-", "-", needs, "-", "-", "-", "-", "-"]
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [
        *start,
        tile(row["plan"]),
        str(row["plan"]["n_steps"]),
        mib(row["scratch_bytes"]),
        mib(row["peak_bytes"]),
        mib(row["growth_bytes"]),
        speed_text(row["tokens_per_second"], row["spread"]),
        ratio,
        f"{row['error']:.1e}",
    ]
