"""Byte sizes as people write them: "256MiB", 268435456, 1.5 * 2**30."""

from __future__ import annotations

import re
from typing import TypeAlias

import numpy as np

Size: TypeAlias = int | float | str

MOST_BYTES = 2**64
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter + "ib"] = 2 ** (10 * _power)
    _UNITS[_letter + "b"] = 10 ** (3 * _power)
    # as llama.cpp, Docker and most people mean it
    _UNITS[_letter] = _UNITS[_letter + "i"] = 2 ** (10 * _power)
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(size: Size, name: str = "budget") -> int:
    """Number of bytes in `size`.

    Parameters
    ----------
    size : int, float or str
        A whole number of bytes, or text such as "256MiB", "1.5 GiB", "24G" (binary too), "64MB" (decimal), "4096".
    name : str
        The argument's name, for the error message.

    Returns
    -------
    int
        Bytes, at least 0. Fractions of a byte are cut off.

    Raises
    ------
    TypeError, ValueError
        Not a size, negative, NaN, infinite or past 2**64.
    """
    works = f'{name}: give bytes (int) or text such as "256MiB"'
    if isinstance(size, str):
        match = _PATTERN.fullmatch(size)
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{works}; got {size!r}")
        number = match.group(1)
        whole = len(number) <= 19 and number.isdigit()
        n_bytes = int(number) * unit if whole else float(number) * unit
    elif isinstance(size, bool) or not isinstance(size, (int, float, np.integer, np.floating)):
        raise TypeError(f"{works}; got {size!r} ({type(size).__name__})")
    else:
        n_bytes = size
    # NaN and infinities fail the comparison too; no address is past 2**64.
    if not 0 <= n_bytes < MOST_BYTES:
        raise ValueError(f"{works}, at least 0 and below 2**64; got {size!r}")
    return int(n_bytes)


def format_size(n_bytes: float) -> str:
    """`n_bytes` for a reader: exact below 1 KiB, else with two decimals ("1.25 MiB")."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"
