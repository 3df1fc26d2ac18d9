"""An engine's process: reads requests and writes replies, one JSON object a line.

Usage: ``python -m tools.bench.model_peers NAME``. Standard output belongs to the replies; whatever libraries print goes
to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import numpy as np

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
        begun = time.perf_counter()
        if n_prompt:
            engine.append(timed)
        else:
            for index in range(n_gen):
                engine.append(timed[index : index + 1])
        return dict(seconds=time.perf_counter() - begun)

    def drop(self) -> dict[str, Any]:
        """Close the file."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        return {}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message):
        replies.write(json.dumps(message) + "\n")

    try:
        module = importlib.import_module(f".{sys.argv[1]}", __package__)
        reply(dict(ready=module.describe()))
    except ImportError as error:
        reply(dict(missing=str(error)))
        return
    server = Server(module)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(getattr(server, request.pop("do"))(**request))
        except Exception as error:
            traceback.print_exc()
            reply(dict(error=f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
