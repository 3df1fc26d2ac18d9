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
__all__ = [
    "IK",
    "LLAMA_CPP",
    "PeerError",
    "Setting",
    "missing",
    "need",
    "peer_loads",
    "peer_logits",
]
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
    n_threads: int = 1


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


def need(engine: str) -> None:
    """Skip the test where an engine cannot be asked; fail it in CI, which has both."""
    import pytest

    if reason := missing(engine):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


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
    return _peer_logits(engine, path, tuple(map(int, tokens)), setting or Setting())


@functools.cache
def _peer_logits(engine, path, tokens, setting):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "logits.npy")
        job = {
            "paths": [str(path)],
            "tokens": tokens,
            **setting._asdict(),
            "type_k": int(QType[setting.type_k]),
            "type_v": int(QType[setting.type_v]),
        }
        _run(engine, job, out)
        return np.load(out)


def peer_loads(engine: str, paths) -> list[bool]:
    """Which of some files an engine loads, none of which it dies of."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "loaded.npy")
        _run(engine, {"paths": [str(path) for path in paths], "tokens": [], "mla": 0}, out)
        return np.load(out).tolist()


def _run(engine, job, out):
    paths = [str(library) for library in libraries(engine)]
    job = json.dumps({"engine": engine, "libraries": paths, "out": out, **job})
    child = [sys.executable, str(HERE / "peer_child.py"), job]
    done = subprocess.run(child, capture_output=True, timeout=TIMEOUT)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise PeerError(f"{engine} ended with {done.returncode}:\n" + "\n".join(said[-12:]))
