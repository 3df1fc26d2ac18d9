"""Where arrays lie: compiled code takes them by address."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def address(array: np.ndarray | None) -> int:
    """Of a NumPy array's first element; 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]
