"""Child processes of ``kqcap bench --vs``, one module a peer.

Each module has

``describe()``
    Imports what it measures and returns its versions; ImportError if it is not installed.
``prepare(case, data)``
    {column: `Variant` or a text that says why there is none} for a case (a dict, see
    tools/bench/versus_cases.py) and its `data` (see inputs.py).
``set_threads(n)``
    Called outside the timing, before each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# What to install for each peer that --vs knows.
INSTALL = {
    "torch": "pip install torch",
    "ggml": "pip install llama-cpp-py-sync, or llama-cpp-python, which is built for this CPU",
    "gguf": "pip install gguf",
    "numpy": "pip install numpy",
}


@dataclass
class Variant:
    """One way to do a case's work.

    Attributes
    ----------
    call : callable
        ``call(n_threads)``: the work, once.
    output : callable or None
        The last call's result in the case's own layout; None: there is nothing to compare.
    info : dict
        What else is worth keeping, as plain data; may be a callable that is asked after a run.
    """

    call: Callable
    output: Callable | None = None
    info: dict | Callable = field(default_factory=dict)
