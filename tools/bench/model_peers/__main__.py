"""An engine's process: reads requests and writes replies, one JSON object a line.

Usage: ``python -m tools.bench.model_peers NAME``. Standard output belongs to the replies; whatever libraries print goes
to standard error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import timing
from ..serve import serve
from . import Job


class Server:
    """Answers requests about one file at a time."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._engine: Any = None

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """Open a file; what its engine says of it."""
        self.drop()
        engine = self._module.Engine()
        info = engine.load(Job(**job))
        self._engine = engine
        return dict(info=info)

    def run(self, n_prompt: int, n_gen: int, depth: int, seed: int, n_vocab: int) -> dict[str, Any]:
        """Seconds of a test as `model_cases.Test` has it."""
        engine = self._engine
        tokens = np.random.default_rng(seed).integers(0, n_vocab, depth + n_prompt + n_gen)
        if not engine.truncate(depth):
            engine.truncate(0)
            if depth:
                engine.append(tokens[:depth])
        timed = tokens[depth:]

        def append():
            step = n_prompt or 1
            for start in range(0, len(timed), step):
                engine.append(timed[start : start + step])

        return dict(seconds=timing.seconds_of(append))

    def drop(self) -> dict[str, Any]:
        """Close the file."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        return {}


if __name__ == "__main__":
    serve(__package__, Server)
