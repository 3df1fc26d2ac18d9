"""Child processes of ``kqcap bench MODEL --vs``, one module an engine.

Each module has

``describe()``
    Its versions; ImportError if it is not installed.
``Engine()``
    `load(job)` opens the file of a `Job`, and gives what it says of its memory; `append(tokens, progress)` puts tokens in
    the cache, the last one's logits being made, and tells `progress` the tokens done, and all; `truncate(n)` keeps the
    first n tokens and says whether it could; `close()`.
"""

from __future__ import annotations

from typing import NamedTuple

# What to install for each engine that --vs knows.
INSTALL = {
    "ik": "pip install ik-llama-cpp-python",
    "ggml": "pip install llama-cpp-py-sync",
}


class Job(NamedTuple):
    """A file, and how it is to run: ``-c -ub -amb -ctk -mla -t``."""

    path: str
    n_ctx: int
    n_ubatch: int
    amb_mib: int
    kv_type: str
    mla: int | str
    n_threads: int
