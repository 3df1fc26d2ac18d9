"""``kqcap pool``: look into memory pools, alive or by their trace."""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
