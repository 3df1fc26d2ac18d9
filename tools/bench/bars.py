"""Bars, for every bench: what a measured figure must reach, whether it did, and the table of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .growing_table import Column, GrowingTable


def verdict(
    text: str,
    value: float | None,
    bound: float,
    *,
    at_most: bool = False,
    goal: float | None = None,
    must_hold: bool = False,
) -> dict[str, Any]:
    """A bar and what was reached.

    Parameters
    ----------
    text : str
        What is held against the bar.
    value : float or None
        What was reached; None: it was not measured.
    bound : float
        The bar: at least that much, or with `at_most` no more.
    goal : float, optional
        What would be better still.
    must_hold : bool
        It is about right or wrong, not fast or slow.

    Returns
    -------
    dict
        These, ``met`` and ``reaches_goal``: None where nobody knows.
    """
    met = None if value is None else bool(value <= bound if at_most else value >= bound)
    return dict(
        text=text,
        value=value,
        bound=bound,
        at_most=at_most,
        met=met,
        goal=goal,
        reaches_goal=None if goal is None or value is None else value >= goal,
        must_hold=must_hold,
    )


def missed(verdicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were measured and not met."""
    return [each for each in verdicts if each["met"] is False]


def summary(verdicts: Sequence[dict[str, Any]]) -> str:
    """How many were met, missed and not measured."""
    counts = [sum(each["met"] is met for each in verdicts) for met in (True, False, None)]
    return "bars: {} met, {} missed, {} not measured".format(*counts)


def print_bars(verdicts: Sequence[dict[str, Any]], say: Callable[[str], object]) -> None:
    """A table, a row a bar."""
    longest = max((len(each["text"]) for each in verdicts), default=0)
    table = GrowingTable(
        [
            Column("bar", lambda bar: bar["text"], longest, "left"),
            Column("value", lambda bar: f"{bar['value']:.4g}", 9),
            Column(
                "must be", lambda bar: f"{'<=' if bar['at_most'] else '>='} {bar['bound']:g}", 12
            ),
            Column("", lambda bar: "met" if bar["met"] else "MISSED", 6, "left"),
        ],
        say,
    )
    for each in verdicts:
        table.add(each)
