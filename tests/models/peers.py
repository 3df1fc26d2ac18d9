"""Logits of every position from other engines on the same file: llama.cpp and ik_llama.cpp, out of their wheels.

An engine runs in a child process (peer_child.py), so that its crash is a `PeerError` of one test.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as QType

from tools.bench.model_peers.libraries import IK, LLAMA_CPP, WHEELS, libraries

HERE = pathlib.Path(__file__).parent
__all__ = ["IK", "LLAMA_CPP", "PeerError", "Setting", "missing", "peer_logits"]
TIMEOUT = 120  # seconds


class PeerError(RuntimeError):
    """An engine that refused a file, or died; the message ends with what it said."""


class Setting(NamedTuple):
    """How an engine is run.

    `mla` is ik_llama.cpp's alone (0: decompressed, 1 and 2: absorbed, 3: by the number of rows).
    """

    n_ctx: int = 512
    n_ubatch: int = 512
    type_k: str = "F16"
    type_v: str = "F16"
    flash_attention: bool = False
    mla: int = 0
    n_threads: int = 2


@functools.cache
def missing(engine: str) -> str | None:
    """Why an engine cannot be asked on this machine, or None: it can."""
    package, _ = WHEELS[engine]
    try:
        libraries(engine)
    except ImportError as error:
        return f"NOT CHECKED against {engine}: {error}"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"NOT CHECKED against {engine}: {package} is of no use here: {error}"
    return None


def peer_logits(engine: str, path, tokens, setting: Setting | None = None) -> np.ndarray:
    """What an engine makes of a prompt.

    Parameters
    ----------
    engine : str
        LLAMA_CPP or IK.
    path : str or os.PathLike
        The model file.
    tokens : sequence of int
        The prompt, as it is: no token is put before it.
    setting : Setting, optional

    Returns
    -------
    numpy.ndarray
        float32 (n_tokens, n_vocab): logits after each token.

    Raises
    ------
    PeerError
        It does not load the file, or died.
    """
    setting = Setting() if setting is None else setting
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "engine": engine,
            "libraries": [str(library) for library in libraries(engine)],
            "path": str(path),
            "tokens": [int(token) for token in tokens],
            "out": os.path.join(folder, "logits.npy"),
            **setting._asdict(),
            "type_k": int(QType[setting.type_k]),
            "type_v": int(QType[setting.type_v]),
        }
        child = [sys.executable, str(HERE / "peer_child.py"), json.dumps(job)]
        done = subprocess.run(child, capture_output=True, timeout=TIMEOUT)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise PeerError(f"{engine} ended with {done.returncode}:\n" + "\n".join(said[-12:]))
        return np.load(job["out"])
