"""Child processes of ``kqcap bench MODEL --vs``, one module an engine.

Each module has ``describe()``, which imports the engine and returns its versions (ImportError if it is not
installed), and ``Engine``, which `Server` of __main__.py drives.
"""

from __future__ import annotations

# What to install for each engine that --vs knows.
INSTALL = {
    "ik": "pip install ik-llama-cpp-python",
    "ggml": "pip install llama-cpp-py-sync",
}
