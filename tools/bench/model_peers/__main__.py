"""An engine's process: reads requests and writes replies, one JSON object a line.

Usage: ``python -m tools.bench.model_peers NAME``. Standard output belongs to the replies; whatever libraries print goes
to standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import timing
from ..serve import serve
from . import Job


class Server:
    """Answers requests about one file at a time."""

    def __init__(self, module: Any, progress: Callable[[int, int], None]) -> None:
        self._module, self._progress = module, progress
        self._engine: Any = None

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """Open a file; what its engine says of it."""
        self.drop()
        engine = self._module.Engine()
        info = engine.load(Job(**job))
        self._engine = engine
        return dict(info=info)

    def run(self, n_prompt: int, n_gen: int, depth: int, seed: int, n_vocab: int) -> dict[str, Any]:
        """Seconds of a test as `model_cases.BenchTest` has it."""
        engine, progress = self._engine, self._progress
        tokens = np.random.default_rng(seed).integers(0, n_vocab, depth + n_prompt + n_gen)
        if not engine.truncate(depth):
            engine.truncate(0)
            if depth:
                engine.append(tokens[:depth], progress)
        timed = tokens[depth:]

        def append():
            if n_prompt:
                engine.append(timed, progress)
                return
            for number in range(n_gen):
                engine.append(timed[number : number + 1], _nobody)
                progress(number + 1, n_gen)

        return dict(seconds=timing.seconds_of(append))

    def drop(self) -> dict[str, Any]:
        """Close the file."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        return {}


def _nobody(done, total):
    """Is told of a token's own progress."""


if __name__ == "__main__":
    serve(__package__, Server)
