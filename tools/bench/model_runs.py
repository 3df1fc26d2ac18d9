"""Runs of whole models: memory by class, planned and used, and t/s."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import loading, process
from . import timing
from .model_cases import WARM_UP_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from quant.models.model import Model

    from .model_cases import BenchTest, Case


@dataclass
class Row:
    """What became of a case. Sizes in bytes, times in seconds; None: not measured.

    Attributes
    ----------
    compute_peak : int
        Compute memory that passes used at most, as the model counts it.
    growth_bytes : int
        What the process grew by (anonymous resident memory) from before the model was loaded to after its runs.
    """

    case: Case
    compute_peak: int | None = None
    growth_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    cannot_run: str = ""
    broken: list[str] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """t/s of each run."""
        return [self.case.test.n_tokens / seconds for seconds in self.seconds]

    @property
    def spread(self) -> float | None:
        """Half of what the runs' t/s differ by, from three runs on."""
        return timing.half_range(self.speeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        case = self.case
        return {
            **case.setting.to_dict(),
            "ambs": list(case.ambs),
            **case.test._asdict(),
            "test": case.test.name,
            "n_ctx": case.test.n_ctx,
            "memory": None if case.memory is None else case.memory.to_dict(),
            "compute_planned": None if case.memory is None else case.memory.compute,
            "compute_used": self.compute_peak,
            "growth_bytes": self.growth_bytes,
            "seconds": self.seconds,
            "tokens_per_second": statistics.median(self.speeds) if self.seconds else None,
            "spread": self.spread,
            "cannot_run": self.cannot_run or case.cannot_run,
            "broken": self.broken,
        }


def warm_up(path: Any, cases: list[Case], say: Callable[[str], object]) -> None:
    """Compile and load what runs once a process: a short prompt and a token of each kind of setting."""
    done = set()
    for case in cases:
        kind = case.setting._replace(amb_mib=0, n_ubatch=0)
        if case.planned is None or kind in done:
            continue
        done.add(kind)
        n = min(case.test.n_ctx, WARM_UP_TOKENS)
        with loading.load(path, say, **case.setting.options(n + 1)) as net:
            net.prefill(np.zeros(n, np.int32))
            net.decode(0)


def run_case(
    path: Any,
    case: Case,
    *,
    repetitions: int,
    until: float | None,
    seed: int,
    say: Callable[[str], object],
    progress: Callable[[int, int], None],
) -> Row:
    """Load the model as a case says, and time its test.

    Parameters
    ----------
    path : str or os.PathLike
    case : Case
    repetitions : int
        Timed runs at most.
    until : float or None
        `time.monotonic()` after which no further run is begun; there is one at least.
    seed : int
        Of the tokens.
    say, progress : callable
        Told the library's warnings; told the tokens done, and all, of a run.
    """
    row = Row(case)
    if case.planned is None:
        return row
    gc.collect()
    process.hand_back_freed()
    before = process.anonymous_bytes()
    try:
        net = loading.load(path, say, **case.setting.options(case.test.n_ctx))
    except MemoryError as error:
        row.cannot_run = str(error) or "out of memory"
        return row
    with net:
        run = _Runs(net, case.test, seed, progress)
        run.once(warm_up=True)
        while len(row.seconds) < repetitions:
            row.seconds.append(run.once())
            if until is not None and time.monotonic() + row.seconds[-1] > until:
                break
        row.compute_peak = net.compute_peak
        after = process.anonymous_bytes()
        if before is not None and after is not None:
            row.growth_bytes = max(0, after - before)
        row.broken = loading.broken_limits(net)
        if net.memory != case.memory:
            row.broken.append("what was loaded is not what was planned")
    return row


class _Runs:
    """One test on a loaded model, again and again."""

    def __init__(
        self, net: Model, test: BenchTest, seed: int, progress: Callable[[int, int], None]
    ):
        self._net, self._test, self._progress = net, test, progress
        rng = np.random.default_rng(seed)
        self._tokens = rng.integers(0, net.config.n_vocab, test.n_ctx).astype(np.int32)
        self._logits = np.empty(net.config.n_vocab, np.float32)

    def once(self, warm_up: bool = False) -> float:
        """Seconds of one run, or of what warms up for it."""
        test = self._test.warm_up(self._net.choices.n_ubatch) if warm_up else self._test
        self._go_to_depth()
        tokens = self._tokens[test.depth : test.n_ctx]
        return timing.seconds_of(lambda: self._pass_over(tokens))

    def _pass_over(self, tokens):
        net = self._net
        if self._test.n_prompt:
            net.prefill(tokens, out=self._logits, progress=self._progress)
            return
        for number, token in enumerate(tokens):
            net.decode(token, out=self._logits)
            self._progress(number + 1, len(tokens))

    def _go_to_depth(self):
        """The first tokens in the cache, and no others."""
        net, depth = self._net, self._test.depth
        if net.n_kv > depth:
            try:
                net.truncate(depth)
            except ValueError:  # rows that a window had let go would be needed again
                net.truncate(0)
        if net.n_kv < depth:
            net.prefill(self._tokens[net.n_kv : depth])
