"""Running tests as on lesser CPUs: in a process of their own, where Numba compiles for such a one.

As a plugin of that process (``-p lesser_cpus``) this module also makes sure that it is one.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
# Set in the process of a lesser CPU: the name of that CPU.
NAME_VARIABLE = "KQCAP_TEST_CPU"


@dataclasses.dataclass(frozen=True)
class Cpu:
    """What Numba compiles for, and the form of `lowlevel.cpu.simd` that follows from it."""

    numba_name: str
    features: tuple
    level: str

    @property
    def has_vnni(self):
        return bool({"avx512vnni", "avxvnni"} & {*self.features})

    @property
    def environment(self):
        flags = ",".join(f"+{feature}" for feature in self.features)
        return {"NUMBA_CPU_NAME": self.numba_name, "NUMBA_CPU_FEATURES": flags}


_AVX2 = tuple("avx avx2 fma f16c sse4.2 ssse3 sse4.1 bmi bmi2 popcnt".split())
_AVX512 = (*_AVX2, *"avx512f avx512bw avx512vl avx512dq avx512cd".split())

CPUS = {
    "portable": Cpu("generic", (), "portable"),
    "avx2": Cpu("haswell", _AVX2, "avx2"),
    "avx2 with VNNI": Cpu("alderlake", (*_AVX2, "avxvnni"), "avx2"),
    "avx512 without VNNI": Cpu("skylake-avx512", _AVX512, "avx512"),
}


def skip_unless_lesser(name):
    """Skip the calling test if this machine is no better than CPU `name`, or no such machine."""
    # Imported here: as a plugin this module comes before everything else.
    from numba.core import codegen

    from lowlevel.cpu import simd

    cpu = CPUS[name]
    if NAME_VARIABLE in os.environ:
        pytest.skip("already in the process of a lesser CPU")
    host = {flag[1:] for flag in codegen.get_host_cpu_features().split(",") if flag[0] == "+"}
    missing = set(cpu.features) - host
    if missing:
        pytest.skip(f"this machine lacks {', '.join(sorted(missing))}")
    if (simd.LEVEL, simd.HAS_VNNI) == (cpu.level, cpu.has_vnni):
        pytest.skip("this process runs that form already")


def run_tests(name, *nodes, timeout=1500):
    """Run tests as on CPU `name` and fail unless at least one ran and all of them passed.

    Parameters
    ----------
    name : str
        A key of `CPUS`. Where this machine is no better, the calling test is skipped.
    nodes : str or pathlib.Path
        Node ids, ``file::test``, relative to the tests' folder or absolute.
    """
    skip_unless_lesser(name)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    path = os.pathsep.join([str(TESTS), str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "lesser_cpus"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(TESTS / node) for node in nodes]
    done = subprocess.run(
        command,
        env={**kept, **CPUS[name].environment, NAME_VARIABLE: name, "PYTHONPATH": path},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"as on {name}: exit status {done.returncode}\n{done.stdout}"
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout


def pytest_configure():
    """In the other process: is it the CPU that was asked for?"""
    from lowlevel.cpu import simd

    cpu = CPUS[os.environ[NAME_VARIABLE]]
    if (simd.LEVEL, simd.HAS_VNNI) != (cpu.level, cpu.has_vnni):
        pytest.exit(f"compiling for {simd.LEVEL}, VNNI {simd.HAS_VNNI}, not for {cpu}", 3)
