"""Time to import the libraries, and to compile each kernel in an empty cache; in child processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from .peers.handle import child_environment
from .versus_cases import Case

__all__ = ["measure"]

IMPORT_ROUNDS = 5

# Importing, and the first call of a program with a warm cache.
_IMPORT = """
import json, sys, time
begun = time.perf_counter()
import lowlevel, quant
imported = time.perf_counter()
modules = [name for name in ("scipy", "torch", "numba", "gguf") if name in sys.modules]
import numpy as np
q = np.ones((1, 8, 64), np.float32)
lowlevel.attention(q, q, q)
called = time.perf_counter()
print(json.dumps(dict(
    seconds=imported - begun, first_call_seconds=called - imported, modules=modules,
    modules_after_call=[name for name in ("scipy", "torch", "numba", "gguf") if name in sys.modules],
)))
"""


def measure(case: Case, n_threads: int, repetitions: int | None) -> dict[str, Any]:
    """The result of a startup case: plain data as from versus.Trial."""
    measured = _MEASURE[case.sizes["what"]](n_threads, repetitions)
    return dict(**case.to_dict(), columns=[], notes=[], **measured)


def _child(arguments, environment):
    """Standard output's last line of a Python process, as JSON."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(arguments[:2])}: exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _import(n_threads, repetitions):
    environment = child_environment(n_threads)
    _child(["-c", _IMPORT], environment)  # fills the caches of bytecode and kernels
    rounds = [_child(["-c", _IMPORT], environment) for _ in range(repetitions or IMPORT_ROUNDS)]
    return dict(
        rows=[
            dict(
                name="import lowlevel, quant",
                seconds=statistics.median(r["seconds"] for r in rounds),
                all_seconds=[r["seconds"] for r in rounds],
                modules=rounds[0]["modules"],
            ),
            dict(
                name="first attention call after it, warm kernel cache",
                seconds=statistics.median(r["first_call_seconds"] for r in rounds),
                all_seconds=[r["first_call_seconds"] for r in rounds],
                modules=rounds[0]["modules_after_call"],
                is_extra=True,
            ),
        ]
    )


def _compile(n_threads, repetitions):
    with tempfile.TemporaryDirectory(prefix="kqcap-kernels-") as folder:
        environment = {**child_environment(n_threads), "NUMBA_CACHE_DIR": folder}
        environment.pop("NUMBA_DISABLE_JIT", None)
        module = f"{__package__}.peers.first_calls"
        rows = _child(["-m", module], environment)
        n_files = sum(name.endswith(".nbc") for _, _, names in os.walk(folder) for name in names)
    return dict(rows=rows, cached_kernels=n_files)


_MEASURE = {"import": _import, "compile": _compile}
