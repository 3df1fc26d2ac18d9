"""Memory of this process and of the machine as Linux counts it; None where it does not say."""

from __future__ import annotations

import ctypes
import pathlib

__all__ = [
    "anonymous_bytes",
    "available_bytes",
    "hand_back_freed",
    "peak_resident_bytes",
    "reset_peak_resident",
    "resident_bytes",
]

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")
_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def resident_bytes() -> int | None:
    """Resident memory of this process now (VmRSS)."""
    return _field(_STATUS, "VmRSS")


def anonymous_bytes() -> int | None:
    """Resident memory of this process that is no file's: mapped weights do not count (RssAnon)."""
    return _field(_STATUS, "RssAnon")


def peak_resident_bytes() -> int | None:
    """The most that was resident since the last `reset_peak_resident` (VmHWM)."""
    return _field(_STATUS, "VmHWM")


def reset_peak_resident() -> bool:
    """Start VmHWM anew at what is resident now. False where the kernel does not let us."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def hand_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library can, so that its use counts again."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        pass


def available_bytes() -> int | None:
    """Memory that can still be taken: the machine's, or less where a control group caps it."""
    sizes = [_field(_MEMINFO, "MemAvailable")]
    try:
        limit, used = (
            int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
        sizes.append(limit - used)
    except (OSError, ValueError):  # no such file, or "max": no cap
        pass
    return min((size for size in sizes if size is not None), default=None)


def _field(path, name):
    """A line such as "VmRSS:    1234 kB", in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
