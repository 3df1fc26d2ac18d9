"""Where and when figures were measured, for the record of a benchmark."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

from ..process import available_bytes

__all__ = ["describe", "line", "load"]

_PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "gguf",
    "torch",
    "llama-cpp-python",
    "llama-cpp-py-sync",
    "scipy",
)


def describe(device_name: str = "cpu") -> dict[str, Any]:
    """Plain data: date, commit (of the environment's KQCAP_COMMIT, else git's), CPU, memory, system, versions, load;
    of a GPU also its name, driver and runtime."""
    from lowlevel.cpu.threads import cpu_count

    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=os.environ.get("KQCAP_COMMIT") or _output_of(["git", "rev-parse", "HEAD"]),
        **_gpu(device_name),
        cpu=_cpu_model(),
        cpus=cpu_count(),
        memory_available=available_bytes(),
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        load_before=load(),
    )


def line(machine: dict[str, Any]) -> str:
    """What is said of the machine above a table: of `describe`, with ``load_after`` if that is known by then."""
    loads = [machine["load_before"], *([machine["load_after"]] if "load_after" in machine else [])]
    parts = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, load "
        + " -> ".join("?" if load is None else f"{load:.1f}" for load in loads)
    ]
    if "gpu" in machine:
        told = {key: machine.get(key) for key in ("driver", "cuda", "cupy")}
        parts.insert(0, " ".join([machine["gpu"], *(f"{k} {v}" for k, v in told.items() if v)]))
    versions = [f"{name} {version}" for name, version in machine["packages"].items() if version]
    parts.append(", ".join([f"Python {machine['python']}", *versions]))
    return "; ".join([*parts, f"{machine['date']}, commit {(machine['commit'] or '?')[:9]}"])


def _gpu(device_name):
    if device_name == "cpu":
        return {}
    if not device_name.startswith("cuda:"):
        return dict(gpu="simulator")
    import cupy

    runtime, index = cupy.cuda.runtime, int(device_name.partition(":")[2])
    return dict(
        gpu=runtime.getDeviceProperties(index)["name"].decode(),
        driver=_output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        cuda=runtime.runtimeGetVersion(),
        cupy=cupy.__version__,
    )


def _output_of(command):
    here = pathlib.Path(__file__).parent
    try:
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def load() -> float | None:
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
