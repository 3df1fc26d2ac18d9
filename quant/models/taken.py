"""What those take from a pool who keep it to their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowlevel import Pool


class Taken:
    """A pool as those see it who keep what they take: all of it is given back at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.device = pool, pool.device
        self._arrays: list[Any] = []

    def empty(self, shape: Any, dtype: Any, *, tag: str) -> Any:
        """See `Pool.empty`."""
        self._arrays.append(self._pool.empty(shape, dtype, tag=tag))
        return self._arrays[-1]

    def free(self) -> None:
        """Give everything back."""
        while self._arrays:
            self._pool.free(self._arrays[-1])
            self._arrays.pop()
