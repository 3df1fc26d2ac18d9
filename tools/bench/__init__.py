"""``kqcap bench``: attention and products timed, beside peers and against bars."""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
