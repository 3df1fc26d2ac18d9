"""What ``kqcap bench MODEL`` runs, as data: tests as llama-bench has them, and settings; those with equal plans are one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from ..options import MIB
from ..placing import Placing
from .measure import unbudgeted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from lowlevel.comm import Comm
    from quant.models.model import Memory, ModelPlan


WARM_UP_TOKENS = 512


class BenchTest(NamedTuple):
    """One test: a prompt of `n_prompt` tokens, or `n_gen` tokens one by one, behind `depth` others."""

    n_prompt: int
    n_gen: int
    depth: int

    @property
    def name(self) -> str:
        """As llama-bench prints it."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return what + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_tokens(self) -> int:
        """Those that are timed."""
        return self.n_prompt or self.n_gen

    @property
    def n_ctx(self) -> int:
        """Tokens in the cache at the end."""
        return self.depth + self.n_tokens

    def warm_up(self, n_ubatch: int) -> BenchTest:
        """What comes before the timed runs: a u-batch of at most `WARM_UP_TOKENS` of the prompt, or one token.

        It loads kernels and starts threads; a long prompt would take as long as a timed run. What it leaves untouched
        of the compute memory counts in the first of them, and not in their median.
        """
        return self._replace(
            n_prompt=min(self.n_prompt, n_ubatch, WARM_UP_TOKENS), n_gen=min(self.n_gen, 1)
        )

    def passes(self, n_ubatch: int) -> Iterator[tuple[int, int, int]]:
        """(n_tokens, n_outputs, n_kv) of the passes that are timed."""
        if not self.n_prompt:
            yield from ((1, 1, self.depth + n + 1) for n in range(self.n_gen))
            return
        for start in range(0, self.n_prompt, n_ubatch):
            stop = min(start + n_ubatch, self.n_prompt)
            yield stop - start, int(stop == self.n_prompt), self.depth + stop


class Setting(NamedTuple):
    """How the model runs: arguments of `quant.load`, `amb_mib` 0 for no cap.

    `comm`: this rank's end of those that share it by `split`; None: it runs alone. `placing`: where it lies.
    """

    n_ubatch: int
    kv_type: str
    mla: int | str
    n_threads: int | None
    method: str
    amb_mib: int
    split: str | None = None
    comm: Comm | None = None
    placing: Placing = Placing()

    def options(self, n_ctx: int) -> dict[str, Any]:
        """As `quant.load` takes them."""
        return dict(
            **self.placing.options(),
            n_ctx=n_ctx,
            n_ubatch=self.n_ubatch,
            amb=self.amb_mib * MIB or None,
            kv_type=self.kv_type,
            mla=self.mla,
            method=self.method,
            n_threads=self.n_threads,
            split=self.split,
            comm=self.comm,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        n_ranks = 1 if self.comm is None else self.comm.size
        values = self._asdict()
        del values["comm"]
        values["placing"] = self.placing.options()
        return {**values, "n_ranks": n_ranks}


class Case(NamedTuple):
    """One row: a test in a setting; `ambs` (MiB) are the budgets whose plans are those of this one."""

    test: BenchTest
    setting: Setting
    ambs: tuple[int, ...]
    planned: ModelPlan | None
    memory: Memory | None
    cannot_run: str


def bench_tests(n_prompt: list[int], n_gen: list[int], depths: list[int]) -> list[BenchTest]:
    """Prompts, then single tokens, each behind every depth; 0 tokens: no test."""
    sizes = [(n, 0) for n in n_prompt if n] + [(0, n) for n in n_gen if n]
    return [BenchTest(*size, depth) for depth in depths for size in sizes]


def cases_of(
    file: Any, tests: list[BenchTest], settings: list[Setting], merge: bool = True
) -> list[Case]:
    """The rows of every combination, planned by the header of an open file alone.

    Of settings that differ in amb alone and whose passes have equal plans, the one with the smallest amb stands for
    all, if `merge`. What cannot be planned is a row as well, with the reason.
    """
    cases: list[Case] = []
    passes: dict[Any, Any] = {}
    for test, setting in itertools.product(tests, settings):
        case = _planned(file, test, setting, passes)
        same = next((i for i, other in enumerate(cases) if merge and _is_same(case, other)), None)
        if same is None:
            cases.append(case)
        else:
            other = cases[same]
            smaller = min(case, other, key=lambda c: c.setting.amb_mib or float("inf"))
            cases[same] = smaller._replace(ambs=(*other.ambs, *case.ambs))
    return cases


def _planned(file, test, setting, passes):
    from quant.models.model import plan_model

    try:
        planned, memory = plan_model(file, passes=passes, **setting.options(test.n_ctx))
    except (ValueError, MemoryError) as error:  # BudgetError is one
        return Case(test, setting, (setting.amb_mib,), None, None, str(error) or "out of memory")
    return Case(test, setting, (setting.amb_mib,), planned, memory, "")


def _is_same(case, other):
    if case.planned is None or other.planned is None or case.test != other.test:
        return False
    if case.setting._replace(amb_mib=0) != other.setting._replace(amb_mib=0):
        return False
    return case.memory == other.memory and _decided(case) == _decided(other)


def _decided(case):
    """What the plans of all timed passes decided, but for the budget that they were made for."""
    planned, choices = case.planned, case.planned.choices
    steps = []
    for n_tokens, n_outputs, n_kv in case.test.passes(choices.n_ubatch):
        for made in planned.of(n_tokens, n_outputs, n_kv):
            for sizes in made.attention_sizes:
                plan = sizes.plan(sizes.n_keys(n_kv), made.choices, planned.attention_bytes)
                steps.append(unbudgeted(plan.to_dict()))
    return choices.mla, choices.group_rows, steps
