"""Runs of `lowlevel.attention` under several budgets and methods, measured side by side."""

from __future__ import annotations

import copy
import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import lowlevel
import quant
from lowlevel.attention.reference import attention_float64, kept_keys, scaled_error
from lowlevel.sizes import format_size

from .. import process
from ..options import MIB
from . import timing

__all__ = ["ERROR_BOUND", "Case", "Measurement", "Prompt", "measure", "ratio"]

# Promised for scores of a standard deviation up to 3; beyond, it grows with the largest score.
ERROR_BOUND = 5e-6
BOUND_SCORE_STD = 3.0
BOUND_SCORE_MAX = 16.0  # about the largest of some millions of such scores
# Left to the rest of the machine when a case is checked against the memory that is free.
MEMORY_MARGIN = 256 * MIB
SAMPLED_ROWS = 24


@dataclass(frozen=True)
class Case:
    """One row of the table: what is asked for."""

    method: str
    amb_mib: int
    n_ubatch: int
    n_threads: int

    @property
    def reference(self) -> Case:
        """The case that this one's speed is held against."""
        return Case("steps", 0, self.n_ubatch, self.n_threads)


@dataclass
class Measurement:
    """What became of a case. Sizes in bytes, times in seconds; None: not measured."""

    case: Case
    plans: list = field(default_factory=list)  # of each u-batch
    plan: Any = None
    scratch_bytes: int | None = None
    budget: int | None = None
    peak_bytes: int | None = None
    growth_bytes: int | None = None
    seconds: list = field(default_factory=list)
    error: float | None = None
    needs_bytes: int | None = None
    cannot_run: str = ""
    broken: list = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether it was timed at least once, or cannot run."""
        return bool(self.seconds or self.cannot_run)

    def share_with(self, other: Measurement) -> None:
        """Give what was measured to a case with equal plans."""
        for name in (
            "peak_bytes",
            "growth_bytes",
            "seconds",
            "error",
            "needs_bytes",
            "cannot_run",
            "broken",
        ):
            setattr(other, name, copy.copy(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = {**asdict(self.case), **vars(self)}
        del data["case"], data["plans"]
        return {**data, "plan": None if self.plan is None else self.plan.to_dict()}


class Prompt:
    """Attention inputs of one prompt, and the rows whose result is known in float64.

    Parameters
    ----------
    workload : Workload
    kv_type : str
        "f32", "f16" or "q8_0": what K and V are kept as.
    n_ubatch : int
    full : bool
        Every u-batch in turn, each against the keys so far; else only the last one.
    seed : int
        Of the sampled rows.
    """

    def __init__(self, workload: Any, kv_type: str, n_ubatch: int, full: bool, seed: int) -> None:
        n_prompt = workload.k.shape[1]
        starts = range(0, n_prompt, n_ubatch)
        first = 0 if full else starts[-1]
        self.n_tokens = n_prompt - first
        self.ubatches = [
            (
                start - first,
                min(start + n_ubatch, n_prompt) - first,
                min(start + n_ubatch, n_prompt),
            )
            for start in starts[first // n_ubatch :]
        ]
        self.scale = workload.scale
        self.q = workload.q[:, workload.q.shape[1] - self.n_tokens :]
        self.k, self.v = (_as_kv_type(x, kv_type) for x in (workload.k, workload.v))
        n_head, _, _ = self.q.shape
        # as a model wants it: (n_tokens, n_head, d_v), the heads of a token side by side
        self.out = np.empty((self.n_tokens, n_head, workload.v.shape[2]), np.float32).transpose(
            1, 0, 2
        )
        self.out.fill(0)  # resident before anything is measured
        self.rows = _sampled_rows(self.n_tokens, seed)
        k, v = (_dense(x) for x in (self.k, self.v))
        self.expected = attention_float64(self.q, k, v, rows=self.rows, scale=self.scale)
        self.score_std, self.score_max = self._score_spread(k)
        self.error_bound = ERROR_BOUND
        if self.score_std > BOUND_SCORE_STD:
            self.error_bound *= max(1.0, self.score_max / BOUND_SCORE_MAX)

    def _score_spread(self, k):
        """Standard deviation and largest magnitude of the scores of the sampled rows."""
        group = len(self.q) // len(k)
        n_kv = k.shape[1]
        seen = kept_keys(n_kv, self.rows + n_kv - self.n_tokens)
        scores = np.stack(
            [self.scale * (q[self.rows] @ k[h // group].T)[seen] for h, q in enumerate(self.q)]
        )
        return float(scores.std()), float(np.abs(scores).max())

    def plans(self, case: Case) -> list[Any]:
        """The plan of each u-batch; where some do not fit, the BudgetError that asks for most."""
        plans, refused = [], []
        for start, stop, n_kv in self.ubatches:
            try:
                plans.append(self._plan(case, stop - start, n_kv))
            except lowlevel.BudgetError as error:
                refused.append(error)
        if refused:
            raise max(refused, key=lambda error: error.requested)
        return plans

    def _plan(self, case, n_tokens, n_kv):
        return lowlevel.plan_attention(
            n_head=self.q.shape[0],
            n_head_kv=self.k.shape[0],
            n_tokens=n_tokens,
            n_kv=n_kv,
            d_k=self.q.shape[2],
            d_v=self.v.shape[2],
            budget=case.amb_mib * MIB or None,
            kv_dtype=(_dtype_name(self.k), _dtype_name(self.v)),
            method=case.method,
            n_threads=case.n_threads,
        )

    def run(self, plans: Sequence[Any], pool: lowlevel.Pool) -> tuple[float, list[int]]:
        """All u-batches; returns the seconds they took and the pool's peak in each."""
        self.out[:, self.rows] = np.nan  # what an earlier run left must not pass for this one's
        seconds, peaks = 0.0, []
        for (start, stop, n_kv), plan in zip(self.ubatches, plans, strict=True):
            pool.reset_peak()
            call = functools.partial(
                lowlevel.attention,
                self.q[:, start:stop],
                _first_keys(self.k, n_kv),
                _first_keys(self.v, n_kv),
                pool=pool,
                scale=self.scale,
                out=self.out[:, start:stop],
                method=plan.method,
                plan=plan,
                n_threads=plan.n_threads,
            )
            seconds += timing.seconds_of(call)
            peaks.append(pool.peak)
        return seconds, peaks

    def error(self) -> float:
        """Of the last run, against float64, over the largest output."""
        return scaled_error(self.out[:, self.rows], self.expected)


def measure(
    prompts: Mapping[int, Prompt],
    cases: Sequence[Case],
    *,
    repetitions: int,
    deadline: float | None = None,
    seed: int = 0,
    begin: Callable[[int], None] = lambda n_runs: None,
    advance: Callable[[Measurement], None] = lambda run: None,
) -> tuple[list[Measurement], bool]:
    """Run each case once for memory and error, then time all of them in mixed order.

    Cases whose plans are equal are one run: a larger budget changes nothing in it. Ctrl-C ends the
    measurement and keeps what is there.

    Parameters
    ----------
    prompts : dict of int to Prompt
        By u-batch size.
    cases : list of Case
    repetitions : int
        Timed runs of each case. Every round runs all cases, in a new order, so that what else
        happens on the machine hits all of them alike.
    deadline : float, optional
        `time.monotonic()` by which to end: after the first round none is begun that would be late.
    begin : callable
        Told how many runs there will be at most, before the first.
    advance : callable
        Told the `Measurement` after each run of it, for a progress bar.

    Returns
    -------
    list of Measurement
    bool
        Whether it was interrupted.
    """
    results = [Measurement(case) for case in cases]
    try:
        _measure(prompts, cases, results, repetitions, deadline, seed, begin, advance)
    except KeyboardInterrupt:
        return results, True
    return results, False


def _measure(prompts, cases, results, repetitions, deadline, seed, begin, advance):
    for prompt in prompts.values():
        _warm_up(prompt, cases)
    groups = _of_equal_plans(prompts, results)
    begin(len(groups) * (1 + repetitions))
    runs = []
    try:
        for group in groups:
            run = _first_run(prompts[group[0].case.n_ubatch], group[0])
            if run is not None:
                runs.append(run)
            advance(group[0])
        order = random.Random(seed)
        for _ in _rounds(repetitions, deadline):
            for run in order.sample(runs, len(runs)):
                run.timed()
                advance(run.result)
    finally:
        for first, *others in groups:
            for other in others:
                first.share_with(other)


def unbudgeted(plan: dict[str, Any]) -> dict[str, Any]:
    """What a plan decided (its `to_dict()`), without the budget that it was made for."""
    return {key: value for key, value in plan.items() if key != "budget"}


def _of_equal_plans(prompts, results):
    """The results that can run, with their plans, in groups of the same ones; the smallest budget goes first."""
    groups = {}
    for result in results:
        if _plan(prompts[result.case.n_ubatch], result):
            key = result.case.n_ubatch, repr([unbudgeted(plan.to_dict()) for plan in result.plans])
            groups.setdefault(key, []).append(result)
    return [sorted(group, key=lambda result: result.budget) for group in groups.values()]


def ratio(result: Measurement, reference: Measurement | None) -> float | None:
    """Speed over that of `reference`: the median over the rounds, each against its own round."""
    found = reference and timing.ratio(reference.seconds, result.seconds)
    return found["median"] if found else None


def _rounds(count, deadline):
    """range(count), ended before a round that would pass `deadline` if it takes as long as the last."""
    for number in range(count):
        begun = time.monotonic()
        yield number
        now = time.monotonic()
        if deadline is not None and now + (now - begun) > deadline:
            return


class _Run:
    """A case that can run, with its plans and a pool of its own."""

    def __init__(self, prompt, result):
        """The first run, in a fresh pool: how the process grows meanwhile."""
        self._prompt, self._plans, self.result = prompt, result.plans, result
        process.hand_back_freed()
        peak_is_exact = process.reset_peak_resident()
        before = process.resident_bytes()
        self._pool = lowlevel.Pool(result.budget)
        self._run()
        after = process.peak_resident_bytes() if peak_is_exact else process.resident_bytes()
        if before is not None and after is not None:
            result.growth_bytes = max(0, after - before)
        self._check_error()

    def timed(self):
        self.result.seconds.append(self._run())
        self._check_error()

    def _run(self):
        seconds, peaks = self._prompt.run(self._plans, self._pool)
        result = self.result
        result.peak_bytes = max(result.peak_bytes or 0, *peaks)
        if peaks != [plan.scratch_bytes for plan in self._plans]:
            self._broken("pool peak is not the plan's scratch")
        if result.peak_bytes > result.budget:
            self._broken("pool peak is over the budget")
        return seconds

    def _check_error(self):
        result, error = self.result, self._prompt.error()
        result.error = float(np.maximum(error, result.error or 0.0))  # NaN stays
        if not error <= self._prompt.error_bound:
            self._broken(f"error is over {self._prompt.error_bound:g}")

    def _broken(self, what):
        if what not in self.result.broken:
            self.result.broken.append(what)


def _plan(prompt, result):
    """Plan the case; False, with the reason in `result`, where nothing can."""
    case = result.case
    try:
        result.plans = prompt.plans(case)
    except MemoryError as error:  # BudgetError is one
        return _cannot_run(result, error)
    result.plan = result.plans[
        -1
    ]  # what a row shows: of the whole prompt the u-batch with most keys
    result.scratch_bytes = max(plan.scratch_bytes for plan in result.plans)
    result.budget = case.amb_mib * MIB or result.scratch_bytes
    return True


def _first_run(prompt, result):
    """A `_Run` of the case, or None and the reason in `result`."""
    try:
        _check_memory(result.scratch_bytes)
        return _Run(prompt, result)
    except MemoryError as error:
        _cannot_run(result, error)
        return None


def _cannot_run(result, error):
    result.needs_bytes = getattr(error, "requested", result.scratch_bytes)
    # MemoryError of NumPy or Python may have no text, and an empty one would mean that it can run
    result.cannot_run = str(error) or "out of memory"
    return False


def _check_memory(n_bytes):
    """Refuse what would drive the machine into swapping or the process into being killed."""
    available = process.available_bytes()
    if available is not None and n_bytes > available - MEMORY_MARGIN:
        free = format_size(max(0, available - MEMORY_MARGIN))
        raise MemoryError(
            f"scratch of {format_size(n_bytes)} is more than the {free} of free memory"
        )


def _warm_up(prompt, cases):
    """Compile and load what runs once a process, and BLAS's own buffers, on a few tokens."""
    n_tokens, n_kv = min(16, prompt.ubatches[0][1]), min(64, prompt.ubatches[0][2])
    q = prompt.q[:, :n_tokens]
    k, v = (_first_keys(x, max(n_tokens, n_kv)) for x in (prompt.k, prompt.v))
    for method, n_threads in {(case.method, case.n_threads) for case in cases}:
        lowlevel.attention(q, k, v, method=method, n_threads=n_threads)


def _sampled_rows(n_tokens, seed):
    """The first and last row and some between."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n_tokens, SAMPLED_ROWS - 2)
    return np.unique([0, *drawn, n_tokens - 1])


def _as_kv_type(x, kv_type):
    if kv_type == "q8_0":
        return quant.quantize(x, "Q8_0")
    return x.astype({"f32": np.float32, "f16": np.float16}[kv_type], copy=False)


def _dense(x):
    return quant.dequantize(x) if isinstance(x, quant.QuantTensor) else x


def _dtype_name(x):
    return x.qtype if isinstance(x, quant.QuantTensor) else x.dtype


def _first_keys(x, n_kv):
    if isinstance(x, quant.QuantTensor):
        n_head_kv, _, size = x.shape
        return quant.QuantTensor(x.data[:, :n_kv], x.qtype, (n_head_kv, n_kv, size))
    return x[:, :n_kv]
