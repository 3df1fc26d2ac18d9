"""What the machine is, for the record of a benchmark."""

from __future__ import annotations

import os
import pathlib
import platform
from importlib import metadata

from ..process import available_bytes

__all__ = ["describe", "load"]

_PACKAGES = ("numpy", "numba", "llvmlite", "gguf", "torch", "llama-cpp-python", "scipy")


def describe():
    """Plain data: CPU, memory, system, versions, load."""
    from lowlevel.cpu.threads import cpu_count

    return dict(
        cpu=_cpu_model(),
        cpus=cpu_count(),
        memory_available=available_bytes(),
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        load_before=load(),
    )


def load():
    """Processes that were running on average over the last minute; None where unknown."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _cpu_model():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
