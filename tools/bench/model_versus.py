"""``kqcap bench MODEL --vs``: the same file in other engines, each in a process of its own, runs interleaved."""

from __future__ import annotations

import contextlib
import random
import statistics
from typing import TYPE_CHECKING, Any

from ..options import INTERRUPTED, UsageError
from ..token_bar import token_bar
from . import model_peers, provenance, timing
from .growing_table import Column, GrowingTable
from .model_command import (
    chosen_cases,
    columns_of_cases,
    fill_defaults,
    head_of,
    title,
)
from .peers.handle import Peer, PeerError, PeerMissing

if TYPE_CHECKING:
    import argparse

    from .model_cases import Case

OURS = "ours"
ROUNDS = 3


def run(args: argparse.Namespace) -> int:
    """The subcommand; see command.py for its options."""
    import quant

    from .. import tables

    unknown = [name for name in args.vs if name not in model_peers.INSTALL]
    if unknown:
        raise UsageError(
            f"--vs {','.join(unknown)}: of models there are {', '.join(model_peers.INSTALL)}"
        )
    if args.method and args.method != ["auto"]:
        raise UsageError("--method: --vs runs our best, auto")
    fill_defaults(args)
    with quant.open(args.model) as file:
        cases, tests = chosen_cases(args, file, merge=False)
        head = head_of(args.model, file)
        n_vocab = file.tensor_info("token_embd.weight").shape[0]
    names = list(dict.fromkeys(args.vs))
    machine = provenance.describe()
    results: list[dict[str, Any]] = []
    interrupted = False
    with contextlib.ExitStack() as stack:
        peers, missing = _started(stack, [OURS, *names], max(args.threads))
        table = None
        if not args.json:
            tables.note(title(head, cases, tests))
            _note_engines(tables, machine, peers)
            table = GrowingTable(_columns(cases, names))
        try:
            for case in cases:
                result = _Trial(case, peers, args, n_vocab).run()
                results.append(result)
                if table is not None:
                    table.add(result)
        except KeyboardInterrupt:
            interrupted = True
        about = {name: peer.about for name, peer in peers.items()}
    document = dict(
        **head,
        machine={**machine, "load_after": provenance.load()},
        engines=about,
        missing=missing,
        seed=args.seed,
        rows=[{key: value for key, value in row.items() if key != "case"} for row in results],
        interrupted=interrupted,
    )
    if args.json:
        tables.print_json(document)
    else:
        for note in dict.fromkeys(note for row in results for note in row["notes"]):
            tables.note(note)
        for text in missing:
            tables.note(text)
    if interrupted:
        return INTERRUPTED
    return 2 if missing else 0


def _started(stack, names, n_threads):
    """The running engines, and what to say of those that are not installed."""
    peers, missing = {}, []
    for name in names:
        try:
            peer = Peer(name, n_threads, model_peers.__name__, model_peers.INSTALL)
        except PeerMissing as error:
            missing.append(str(error))
            continue
        except PeerError as error:
            raise UsageError(str(error)) from None
        peers[name] = stack.enter_context(contextlib.closing(peer))
    return peers, missing


class _Trial:
    """One case in all engines."""

    def __init__(
        self, case: Case, peers: dict[str, Peer], args: argparse.Namespace, n_vocab: int
    ) -> None:
        self._case, self._peers, self._args, self._n_vocab = case, dict(peers), args, n_vocab
        self._notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """Load, warm up, time; plain data, and the case."""
        case, n_rounds = self._case, self._args.repetitions or ROUNDS
        info = {name: self._asked(name, "loading", "load", job=self._job()) for name in self._peers}
        order = random.Random(self._args.seed)
        seconds: dict[str, list[float]] = {name: [] for name in self._peers}
        warm_up = case.test.warm_up(case.setting.n_ubatch)
        for number, test in enumerate([warm_up] + [case.test] * n_rounds):
            names = self._alive(info)
            what = f"run {number} of {n_rounds}" if number else "warming up"
            for name in order.sample(names, len(names)):
                reply = self._asked(
                    name, what, "run", **test._asdict(), seed=self._args.seed, n_vocab=self._n_vocab
                )
                if reply is None:
                    info[name] = None
                elif number:
                    seconds[name].append(reply["seconds"])
        for name in self._alive(info):
            self._asked(name, "closing", "drop")
        return dict(
            case=case,
            **case.setting.to_dict(),
            **case.test._asdict(),
            test=case.test.name,
            seconds=seconds,
            tokens_per_second={
                name: statistics.median(case.test.n_tokens / s for s in times)
                for name, times in seconds.items()
                if times
            },
            # our speed over theirs
            ratios={
                name: found
                for name, theirs in seconds.items()
                if name != OURS and (found := timing.ratio(theirs, seconds[OURS]))
            },
            compute_bytes={
                name: reply["info"]["compute_bytes"] for name, reply in info.items() if reply
            },
            notes=self._notes,
        )

    def _alive(self, info):
        return [name for name, reply in info.items() if reply is not None]

    def _job(self):
        setting = self._case.setting
        return model_peers.Job(
            path=str(self._args.model),
            n_ctx=self._case.test.n_ctx,
            n_ubatch=min(setting.n_ubatch, self._case.test.n_ctx),
            amb_mib=setting.amb_mib,
            kv_type=setting.kv_type,
            mla=setting.mla,
            n_threads=setting.n_threads,
        )._asdict()

    def _asked(self, name, what, do, **arguments):
        """The reply, or None where the engine could not: then it is a note. `what` stands beside the engine's bar."""
        try:
            with token_bar(f"{self._case.test.name}, {name}: {what}") as progress:
                return self._peers[name].ask(do, progress, **arguments)
        except PeerError as error:
            self._notes.append(str(error))
            return None


# ---------------------------------------------------------------- output


def _note_engines(tables, machine, peers):
    tables.note(
        "; ".join(
            [provenance.line(machine)]
            + [f"{key} ({value})" for peer in peers.values() for key, value in peer.about.items()]
        )
    )
    tables.note(
        "t/s: medians of interleaved rounds; x: our speed over theirs in the same round, median (least-most): "
        "above 1, ours is faster; both with flash attention, ik with -mla 3; compute: MiB, theirs as they log it"
    )


def _columns(cases, names):
    found = [*columns_of_cases(cases, lambda row: row["case"])]
    for name in (OURS, *names):
        found.append(Column(f"{name} t/s", lambda row, name=name: _speed(row, name), 9))
        if name != OURS:
            found.append(Column(f"x {name}", lambda row, name=name: _ratio(row, name), 16))
    for name in (OURS, *names):
        found.append(Column(f"{name} compute", lambda row, name=name: _compute(row, name), 8))
    return found


def _speed(row, name):
    speed = row["tokens_per_second"].get(name)
    return "-" if speed is None else f"{speed:.2f}"


def _ratio(row, name):
    return timing.ratio_text(row["ratios"].get(name))


def _compute(row, name):
    from ..tables import mib

    return mib(row["compute_bytes"].get(name))
