"""The error that a budget raises: what was asked, what was left, who holds the rest, what would work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowlevel.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


SHOWN_HOLDERS = 5


class BudgetError(MemoryError):
    """A request that the budget cannot hold. Nothing was taken or changed.

    It pickles (worker processes), and `to_dict()` gives plain data (JSON).

    Parameters
    ----------
    message : str
        The whole text a reader sees.
    requested, rounded : int
        Bytes asked for; bytes it would have taken (`requested` where not given).
    budget, used, largest_free : int
        The cap; bytes taken when asked; the largest hole (where not given: all that is not used).
    fragmentation : float
        Share of the free bytes that lies outside the largest hole, 0 to 1.
    holders : sequence of dict
        Who holds the used bytes: {"tag", "n_bytes", "n_blocks", "sites"}, the largest first.
    smallest_budget : int, optional
        A budget verified to hold the request, the present holders in place.
    remedy : str
        What would work, as a sentence.

    Attributes
    ----------
    fragmented : bool
        The free bytes would have sufficed in one piece.
    """

    def __init__(
        self,
        message: str,
        *,
        requested: int,
        budget: int,
        rounded: int | None = None,
        used: int = 0,
        largest_free: int | None = None,
        fragmentation: float = 0.0,
        holders: Sequence[dict[str, Any]] = (),
        smallest_budget: int | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message)
        self.requested = requested
        self.rounded = requested if rounded is None else rounded
        self.budget = budget
        self.used = used
        self.largest_free = budget - used if largest_free is None else largest_free
        self.fragmentation = fragmentation
        self.holders = [dict(holder) for holder in holders]
        self.smallest_budget = smallest_budget
        self.remedy = remedy

    @property
    def fragmented(self) -> bool:
        return self.rounded <= self.budget - self.used

    def to_dict(self) -> dict[str, Any]:
        """The message and every attribute as plain data."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields["holders"] = [dict(holder) for holder in self.holders]
        return {"message": str(self), "fragmented": self.fragmented, **fields}

    def __reduce__(self) -> tuple[Any, ...]:
        # The last is whatever else was put on the error: notes (`add_note`), say.
        fields = {name: getattr(self, name) for name in _FIELDS}
        rest = {name: value for name, value in vars(self).items() if name not in fields}
        return _restore, (type(self), str(self), fields), rest or None


_FIELDS = (
    "requested",
    "rounded",
    "budget",
    "used",
    "largest_free",
    "fragmentation",
    "holders",
    "smallest_budget",
    "remedy",
)


def _restore(kind, message, fields):
    return kind(message, **fields)


def refusal(
    what: str, *, holders: Sequence[dict[str, Any]], remedy: str, **fields: Any
) -> BudgetError:
    """A BudgetError whose message says who holds the budget.

    Parameters
    ----------
    what : str
        What was refused: "float32 (128, 512), tag 'kq'".
    holders, remedy, fields
        As for BudgetError, all of them given.
    """
    size = exact_size(fields["requested"])
    if fields["rounded"] != fields["requested"]:
        size += f", rounded to {fields['rounded']}"
    lines = [
        f"budget: no room for {size}: {what}",
        f"budget {exact_size(fields['budget'])}, used {exact_size(fields['used'])}, "
        f"largest free block {exact_size(fields['largest_free'])}, "
        f"fragmentation {fields['fragmentation']:.0%}",
    ]
    for holder in holders[:SHOWN_HOLDERS]:
        site = f", first taken at {holder['sites'][0]}" if holder["sites"] else ""
        lines.append(
            f"  held by {holder['tag']!r}: {exact_size(holder['n_bytes'])} "
            f"in {holder['n_blocks']} block(s){site}"
        )
    if len(holders) > SHOWN_HOLDERS:
        rest = sum(holder["n_bytes"] for holder in holders[SHOWN_HOLDERS:])
        lines.append(f"  held by {len(holders) - SHOWN_HOLDERS} other tag(s): {exact_size(rest)}")
    lines.append(remedy)
    return BudgetError("\n".join(lines), holders=holders, remedy=remedy, **fields)


def exact_size(n_bytes: int) -> str:
    """Exact bytes, with the rounded form where it helps: "1536 B (1.50 KiB)"."""
    return f"{n_bytes} B" if n_bytes < 1024 else f"{n_bytes} B ({format_size(n_bytes)})"
