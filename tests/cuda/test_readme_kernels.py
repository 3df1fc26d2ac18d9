"""The README's section on kernels without a GPU says what happens."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def blocks():
    """{language: [text of each block]} of the section."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## Writing CUDA kernels without a GPU")[1].split("\n## ")[0]
    found = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL):
        found.setdefault(language, []).append(block)
    return found


def run(code, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_the_planted_race_is_reported_as_shown(blocks, tmp_path):
    (tmp_path / "reverse.cu").write_text(blocks["cuda"][0])
    result = run(blocks["python"][0], tmp_path)
    shown = blocks["text"][0].replace("at reverse.cu", f"at {tmp_path}/reverse.cu")
    assert result.stdout == shown, result.stderr


def test_with_the_barrier_it_runs(blocks, tmp_path):
    text = blocks["cuda"][0].replace("// a __syncthreads() is missing here", "__syncthreads();")
    (tmp_path / "reverse.cu").write_text(text)
    result = run(blocks["python"][0] + "assert y[0] == 255 and y[256] == 511", tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_device_path(blocks, tmp_path):
    result = run(blocks["python"][1] + "print(out.shape)", tmp_path)
    assert result.stdout == "(8, 64, 128)\n", result.stderr


def test_without_a_compiler_the_one_to_install_is_named(blocks, tmp_path):
    changes = dict(CUDASIM_CXX="/nowhere/g++", CUDASIM_CACHE_DIR=str(tmp_path))
    result = run(blocks["python"][1], tmp_path, **changes)
    assert result.returncode and "apt install g++" in result.stderr
