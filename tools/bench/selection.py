"""``--only``: what it means, for every bench."""

from __future__ import annotations

from collections.abc import Iterable

from ..options import UsageError


def select(names: Iterable[str], patterns: Iterable[str] | None) -> list[str]:
    """The names that contain any of `patterns` (all words of one, in any case), in their order; None: all.

    Raises
    ------
    UsageError
        A pattern that no name contains.
    """
    names = list(names)
    if not patterns:
        return names
    chosen = set()
    for pattern in patterns:
        words = pattern.lower().split()
        found = [name for name in names if all(word in name.lower() for word in words)]
        if not found:
            raise UsageError(
                f"--only: no case has {pattern!r} in its name; there are: {', '.join(names)}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]
