"""``kqcap bench --vs``: our kernels and their peers, each in a process of its own, interleaved."""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import provenance, versus_report, versus_startup
from .peers import INSTALL
from .peers.handle import Peer, PeerError, PeerMissing
from .versus_cases import Case, select

__all__ = ["PEERS", "run"]

PEERS = tuple(INSTALL)
DEFAULT_THREADS = (1, 2)
# A sample repeats the call until it lasts about this long (seconds), and is the median of these calls.
SAMPLE_SECONDS = 0.02
# Rounds without -r: fewer of what takes long.
ROUNDS, SLOW_ROUNDS, SLOW_SECONDS = 5, 3, 0.4
# Written in NumPy, far slower, and held against factors that leave room: fewer rounds yet.
LEISURELY = ("gguf", "numpy")
LEISURELY_SECONDS = 0.2
# Largest difference from our result, over the largest value of it; by peer, or by its column.
TOLERANCE = {
    ("dequantize", "ggml"): 1e-6,
    ("dequantize", "gguf"): 0.0,
    # Both round activations, not alike, each with an error of 0.007 (see `quant.matmul`).
    ("matvec", "ggml"): 1e-2,
    ("gemm", "ggml"): 1e-2,
    ("attention", "ours bf16"): 2e-2,
    ("attention", "ggml"): 0.05,  # rounds queries, and sums of small outputs, to float16
}
DEFAULT_TOLERANCE = 1e-4


@dataclass
class Column:
    """One way to do a case's work, in a peer's process."""

    name: str
    peer: str
    info: dict = field(default_factory=dict)
    error: float | None = None
    wrong: str = ""
    # by number of threads
    count: dict = field(default_factory=dict)
    seconds: dict = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Peers:
    """The peers' processes, started when first needed, and again after one has died."""

    def __init__(self, names: Iterable[str], n_threads: int) -> None:
        self.names, self._n_threads = list(names), n_threads
        self.missing: dict[str, str] = {}
        self.about: dict[str, Any] = {}
        self._running: dict[str, Peer] = {}

    def get(self, name: str) -> Peer:
        """The running `Peer`; raises PeerError."""
        if name in self.missing:
            raise PeerError(self.missing[name])
        peer = self._running.get(name)
        if peer is not None and not peer.is_alive:
            peer.close()
            peer = None
        if peer is None:
            try:
                peer = Peer(name, self._n_threads)
            except PeerMissing as error:
                self.missing[name] = str(error)
                raise
            self._running[name], self.about[name] = peer, peer.about
        return peer

    def close(self) -> None:
        for peer in self._running.values():
            peer.close()


def run(args: argparse.Namespace) -> int:
    """The subcommand; see bench.py for its options."""
    cases = select(args.only)
    threads = list(dict.fromkeys(args.threads or DEFAULT_THREADS))
    names = ["limits", "ours", *dict.fromkeys(args.vs)]
    from .. import tables

    begun = time.monotonic()
    machine = provenance.describe()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.progress())
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kqcap-vs-")))
        peers = stack.enter_context(contextlib.closing(Peers(names, max(threads))))
        for name in names:
            with contextlib.suppress(PeerError):
                peers.get(name)
        task = progress.add_task("", total=len(cases))
        results = []
        for case in cases:
            progress.update(task, description=case.name)
            case_begun = time.monotonic()
            if case.kind == "startup":
                result = versus_startup.measure(case, max(threads), args.repetitions)
            else:
                result = Trial(case, peers, threads, args.repetitions, args.seed, folder).run()
            results.append({**result, "took": time.monotonic() - case_begun})
            progress.advance(task)
    document = dict(
        machine={**machine, "load_after": provenance.load()},
        peers=peers.about,
        missing=list(peers.missing.values()),
        threads=threads,
        seed=args.seed,
        seconds=time.monotonic() - begun,
        cases=versus_report.judge(results),
    )
    if args.json:
        tables.print_json(document)
    else:
        versus_report.print_tables(document, with_bars=args.check)
    return int(args.check and versus_report.is_missed(document))


class Trial:
    """One case on all peers.

    Parameters
    ----------
    case : Case
    peers : Peers
    threads : list of int
    repetitions : int or None
        Rounds; None: as many as fit the time that a call takes.
    seed : int
    folder : pathlib.Path
        For the outputs that are compared.
    """

    def __init__(
        self,
        case: Case,
        peers: Peers,
        threads: list[int],
        repetitions: int | None,
        seed: int,
        folder: pathlib.Path,
    ) -> None:
        self.case, self.peers, self.threads = case, peers, threads
        self.repetitions, self.seed, self.folder = repetitions, seed, folder
        self.columns: list[Column] = []
        self.notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """Prepare, compare, time; returns plain data for versus_report."""
        self._prepare()
        self._compare()
        for n_threads in self.threads:
            self._time(n_threads)
        self._drop()
        return dict(
            **self.case.to_dict(),
            columns=[column.to_dict() for column in self.columns],
            notes=self.notes,
        )

    def _prepare(self):
        digests, asked = {}, []
        for name in self.peers.names:
            if name in self.peers.missing:
                continue  # said once, above the tables
            with self._noted():
                self.peers.get(name).send("prepare", case=self.case.to_dict(), seed=self.seed)
                asked.append(name)
        for name in asked:  # all of them at once: nothing is timed yet
            with self._noted():
                reply = self.peers.get(name).receive()
                digests[name] = reply["digest"]
                self.columns += [Column(variant, name) for variant in reply["variants"]]
                self.notes += [f"{variant}: {why}" for variant, why in reply["cannot"].items()]
        if len(set(digests.values())) > 1:
            raise RuntimeError(f"{self.case.name}: the peers' inputs differ: {digests}")

    @contextlib.contextmanager
    def _noted(self):
        """What a peer cannot do becomes a note."""
        try:
            yield
        except PeerError as error:
            self.notes.append(str(error))

    def _compare(self):
        """One call of each, its result held against ours."""
        import numpy as np

        expected = None
        for column in sorted(self.columns, key=lambda c: c.name != "ours"):
            path = self.folder / "output.npy"
            if self._sample(column, max(self.threads), 1) is None:
                continue
            reply = self._ask(column, "output", path=str(path))
            if reply is None:
                continue
            column.info = reply["info"]
            if not reply["has_output"]:
                continue
            values = np.load(path)
            if column.name == "ours":
                expected = values
            elif expected is not None:
                self._hold(column, values, expected)

    def _hold(self, column, values, expected):
        import numpy as np

        of_peer = TOLERANCE.get((self.case.kind, column.peer), DEFAULT_TOLERANCE)
        tolerance = TOLERANCE.get((self.case.kind, column.name), of_peer)
        if values.shape != expected.shape:
            column.wrong = f"its output has {values.size} sampled values, ours {expected.size}"
        else:
            largest = float(np.abs(expected).max())
            column.error = float(np.abs(values - expected).max()) / (largest or 1.0)
            if not column.error <= tolerance:
                column.wrong = f"differs from ours by {column.error:.1e} (allowed: {tolerance:g})"
        if column.wrong:
            self.notes.append(f"WRONG: {column.name}: {column.wrong}")

    def _time(self, n_threads):
        order = random.Random(self.seed)
        rounds = {}
        for column in order.sample(self.columns, len(self.columns)):
            seconds = self._sample(column, n_threads, 1)
            if seconds is not None:
                rounds[column.name] = self._begin(column, n_threads, seconds)
        for number in range(max(rounds.values(), default=0)):
            for column in order.sample(self.columns, len(self.columns)):
                done = column.seconds.get(n_threads, [])
                if len(done) <= number < rounds.get(column.name, 0):
                    seconds = self._sample(column, n_threads, column.count[n_threads])
                    if seconds is not None:
                        done.append(seconds)

    def _begin(self, column, n_threads, seconds):
        """Settle how often a sample calls, and how many samples there will be: that number."""
        if seconds < SAMPLE_SECONDS:  # the first call with these threads may have started them
            seconds = min(seconds, self._sample(column, n_threads, 1) or seconds)
        column.count[n_threads] = max(1, math.ceil(SAMPLE_SECONDS / seconds))
        is_slow = seconds > SLOW_SECONDS
        # what takes long needs no warm-up: this call was its first sample
        column.seconds[n_threads] = [seconds] if is_slow else []
        if self.repetitions is None:
            rounds = SLOW_ROUNDS if is_slow else ROUNDS
        else:
            rounds = self.repetitions
        if column.peer in LEISURELY and seconds > LEISURELY_SECONDS:
            rounds = min(rounds, 1 if is_slow else 2)
        return rounds

    def _sample(self, column, n_threads, count):
        """Seconds of one call, or None where the peer failed (and its column is given up)."""
        reply = self._ask(column, "run", n_threads=n_threads, count=count)
        return None if reply is None else reply["seconds"]

    def _ask(self, column, do, **arguments):
        if column not in self.columns:
            return None
        try:
            return self.peers.get(column.peer).ask(do, variant=column.name, **arguments)
        except PeerError as error:
            self.notes.append(f"{column.name}: {error}")
            self.columns.remove(column)
            return None

    def _drop(self):
        for name in {column.peer for column in self.columns}:
            with contextlib.suppress(PeerError):
                self.peers.get(name).ask("drop")
