"""How much the last cache of this CPU holds."""

import functools
import pathlib
import re

# Of CPUs that do not say, and the most that counts: of a server's cache others use their part.
USUAL_BYTES, MOST_BYTES = 16 << 20, 32 << 20
_CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}


@functools.cache
def last_level_bytes(folder=_CACHES):
    """Bytes of the largest cache that Linux names; sysconf's are wrong on AMD's, ten times too large."""
    found = []
    for file in folder.glob("index*/size"):
        size = re.fullmatch(r"([0-9]+)([KM])", file.read_text().strip())
        found += [int(size[1]) * _UNITS[size[2]]] if size else []
    return min(max(found, default=USUAL_BYTES), MOST_BYTES)
