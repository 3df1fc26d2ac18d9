"""``kqcap bench [MODEL]``: whole models, as llama-bench runs them, with the memory that they take in the same row."""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from typing import TYPE_CHECKING

from .. import loading, placing, ranks, token_bar
from ..options import INTERRUPTED, UsageError
from . import default_model, provenance, selection, timing
from .growing_table import Column, GrowingTable
from .model_cases import Setting, bench_tests, cases_of
from .model_runs import run_case, warm_up

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from quant import ModelFile

    from .model_cases import BenchTest, Case

DEFAULT_REPETITIONS = 3
# Of a named file, as llama-bench has them but for the u-batch; of the small file the source's tables.
DEFAULTS: dict[str, list[Any]] = dict(
    n_prompt=[512], n_gen=[128], n_depth=[0], ubatch_size=[2048], attn_max_batch=[256], attention_mla=["auto"],
    kv_type=["f16"], method=["auto"],
)  # fmt: skip
SMALL_DEFAULTS: dict[str, list[Any]] = {
    **DEFAULTS,
    "n_prompt": [2048],
    "n_gen": [],
    "attn_max_batch": [0, 32, 64, 128],
    "method": ["steps", "auto"],
}
# Seconds for the small file's rows, where -r is not given.
SMALL_SECONDS = 140
PARAMETERS = [
    ("n_ubatch", "n_ubatch"),
    ("kv_type", "type_kv"),
    ("mla", "mla"),
    ("n_threads", "threads"),
    ("method", "method"),
]


def run(args: argparse.Namespace) -> int:
    """The subcommand; see command.py for its options."""
    fill_defaults(args)
    begun = time.monotonic()
    import quant

    from .. import tables

    path = args.model or _small_file()
    with quant.open(path) as file:
        cases, tests = chosen_cases(args, file)
        head = head_of(path, file)
    say = loading.complain if not args.json else _nothing
    machine = provenance.describe()
    rows, table = [], None
    if not args.json:
        tables.note(title(head, cases, tests))
        table = GrowingTable(_columns(cases))
    interrupted = False
    until = None if args.repetitions or args.model else begun + SMALL_SECONDS
    try:
        with token_bar.token_bar("warming up"):
            warm_up(path, cases, say)
        for number, case in enumerate(cases):
            row = _measured(args, path, case, _share(until, len(cases) - number), say)
            rows.append(row)
            if table is not None:
                table.add(row)
    except KeyboardInterrupt:
        interrupted = True
    document = {
        **head,
        "machine": machine,
        "seed": args.seed,
        "rows": [row.to_dict() for row in rows],
    }
    document["interrupted"] = interrupted
    _finish(args, document, tables)
    if interrupted:
        print(f"kqcap bench: interrupted; {len(rows)} rows are measured", file=sys.stderr)
        return INTERRUPTED
    return int(any(row.broken for row in rows))


def chosen_cases(
    args: argparse.Namespace, file: ModelFile, merge: bool = True
) -> tuple[list[Case], list[BenchTest]]:
    """The rows that a command line asks for, and their tests.

    Raises
    ------
    UsageError
        There are none, or none can run.
    """
    tests = bench_tests(args.n_prompt, args.n_gen, args.n_depth)
    if not tests:
        raise UsageError("-p, -n: nothing to run")
    by_name = {test.name: test for test in tests}
    tests = [by_name[name] for name in selection.select(by_name, args.only)]
    comm, where = ranks.comm_of(args), placing.Placing.of(args)
    settings = [
        Setting(
            n_ubatch, kv_type, loading.mla_of(mla), n_threads, method, amb, args.split, comm, where
        )
        for n_ubatch, kv_type, mla, n_threads, method, amb in itertools.product(
            args.ubatch_size,
            args.kv_type,
            args.attention_mla,
            args.threads,
            args.method,
            args.attn_max_batch,
        )
    ]
    cases = cases_of(file, tests, settings, merge)
    if all(case.cannot_run for case in cases):
        raise UsageError(cases[0].cannot_run)
    return cases, tests


def _nothing(text):
    """Warnings are no part of JSON."""


def fill_defaults(args: argparse.Namespace) -> None:
    """Put defaults where nothing was given, and drop what is asked for twice."""
    from lowlevel.cpu.threads import resolve_n_threads

    defaults = DEFAULTS if args.model else SMALL_DEFAULTS
    for name, default in defaults.items():
        given = getattr(args, name)
        setattr(args, name, list(dict.fromkeys(default if given is None else given)))
    is_cpu = placing.Placing.of(args).is_cpu
    ours = [resolve_n_threads(None) if is_cpu else None]
    args.threads = list(dict.fromkeys(args.threads or ours))


def _small_file():
    with token_bar.token_bar("model file (once), bytes") as progress:
        return default_model.path(progress, default_model.WHOLE)


def head_of(path: Any, file: ModelFile) -> dict[str, Any]:
    """What is said of the file once."""
    attention = file.attention
    return dict(
        model=str(path),
        architecture=attention.architecture,
        n_layer=attention.n_layer,
        context_length=attention.context_length,
        model_bytes=file.n_bytes,
    )


def _share(until, n_rows):
    """When a row must be done so that those after it have as much time; None: whenever."""
    if until is None:
        return None
    now = time.monotonic()
    return now + (until - now) / n_rows


def _measured(args, path, case, until, say):
    name = f"{case.test.name}, {case.setting.method}, amb {_ambs(case)}"
    # one bar a row: it starts anew with every run
    with token_bar.token_bar(name) as progress:
        return run_case(
            path,
            case,
            repetitions=args.repetitions or DEFAULT_REPETITIONS,
            until=until,
            seed=args.seed,
            say=say,
            progress=progress,
        )


# ---------------------------------------------------------------- output


def title(head: dict[str, Any], cases: list[Case], tests: list[BenchTest]) -> str:
    """The line above the table: the file, and what all rows have in common."""
    from ..tables import mib

    common = [
        f"{heading} {getattr(cases[0].setting, key)}"
        for key, heading in PARAMETERS
        if key not in _varied(cases)
    ]
    setting = cases[0].setting
    if not setting.placing.is_cpu:
        common.append(str(setting.placing))
    if setting.comm is not None:
        common.append(f"{setting.comm.size} ranks, split by {setting.split}")
    beyond = max(test.n_ctx for test in tests) > head["context_length"]
    return (
        f"{head['model']}: {head['architecture']}, {head['n_layer']} layers, {mib(head['model_bytes'])} MiB; "
        f"{', '.join(common)}; sizes in MiB"
        + f"\nwarning: beyond the model's own context of {head['context_length']} tokens"
        * beyond
    )


def _varied(cases):
    return [key for key, _ in PARAMETERS if len({getattr(c.setting, key) for c in cases}) > 1]


def _ambs(case):
    return ",".join(str(amb) for amb in sorted(case.ambs))


def columns_of_cases(cases: list[Case], case_of: Callable[[Any], Case]) -> list[Column]:
    """What tells rows apart: settings that vary, the budgets, the test."""
    varied = _varied(cases)
    widest = max(len(_ambs(case)) for case in cases)
    longest = max(len(case.test.name) for case in cases)
    parameters = [
        Column(heading, functools.partial(_parameter, case_of, key), 5)
        for key, heading in PARAMETERS
        if key in varied
    ]
    return [
        *parameters,
        Column("amb", lambda row: _ambs(case_of(row)), widest),
        Column("test", lambda row: case_of(row).test.name, longest),
    ]


def _parameter(case_of, key, row):
    return str(getattr(case_of(row).setting, key))


def _columns(cases):
    return [
        *columns_of_cases(cases, lambda row: row.case),
        Column("t/s", _speed, 17),
        Column("K/V cache", lambda row: _mib(row.case.memory, "kv_cache"), 9),
        Column("compute planned", lambda row: _mib(row.case.memory, "compute"), 9),
        Column("used", lambda row: _size(row.compute_peak), 9),
        Column("growth", lambda row: _size(row.growth_bytes), 9),
    ]


def _speed(row):
    if row.case.cannot_run or row.cannot_run:
        return "cannot run"
    return timing.speed_text(statistics.median(row.speeds), row.spread)


def _mib(memory, name):
    return "-" if memory is None else _size(getattr(memory, name))


def _size(n_bytes):
    from ..tables import mib

    return mib(n_bytes)


def _finish(args, document, tables):
    if args.json:
        tables.print_json(document)
        return
    rows = document["rows"]
    if any(len(row["ambs"]) > 1 for row in rows):
        tables.note("budgets in one row have the same plans: one run stands for all of them")
    for row in rows:
        if row["cannot_run"]:
            tables.note(f"cannot run: {row['test']}, amb {row['amb_mib']}: {row['cannot_run']}")
        for broken in row["broken"]:
            tables.note(f"BROKEN: {row['test']}, amb {row['amb_mib']}: {broken}")
