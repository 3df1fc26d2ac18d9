"""A peer's process: reads requests and writes replies, one JSON object a line.

Usage: ``python -m tools.bench.peers NAME``. Standard output belongs to the replies; whatever libraries
print goes to standard error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import timing
from ..serve import serve
from . import inputs

# Values of an output that are compared.
SAMPLED_VALUES = 1 << 16


class Server:
    """Answers requests about one case at a time."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._variants: dict[str, Any] = {}

    def prepare(self, case: dict[str, Any], seed: int) -> dict[str, Any]:
        """Make the inputs and what runs on them; says which columns there are."""
        self.drop()
        data = inputs.make(case, seed)
        made = self._module.prepare(case, data)
        self._variants = {n: v for n, v in made.items() if not isinstance(v, str)}
        return dict(
            variants=list(self._variants),
            cannot={n: v for n, v in made.items() if isinstance(v, str)},
            digest=inputs.digest(data),
        )

    def run(self, variant: str, n_threads: int, count: int) -> dict[str, Any]:
        """Call it `count` times; returns the seconds of one."""
        call = self._variants[variant].call
        self._module.set_threads(n_threads)
        return dict(seconds=timing.median_of_calls(lambda: call(n_threads), count))

    def output(self, variant: str, path: str) -> dict[str, Any]:
        """Write some values of the last result to a file; says what else there is to know."""
        made = self._variants[variant]
        info = made.info() if callable(made.info) else made.info
        if made.output is not None:
            values = np.asarray(made.output())
            step = max(1, values.size // SAMPLED_VALUES) | 1  # odd: meets all places in a block
            np.save(path, np.asarray(values, np.float32).reshape(-1)[::step])
        return dict(info=info, has_output=made.output is not None)

    def drop(self) -> dict[str, Any]:
        self._variants = {}
        return {}


if __name__ == "__main__":
    serve(__package__, lambda module, progress: Server(module))
