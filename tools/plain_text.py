"""Standard streams that never die on a character that their encoding lacks (LC_ALL=C, a pipe, an old terminal)."""

from __future__ import annotations

import codecs
import sys

# What tables and bars are drawn with, for a terminal without it; any other character is escaped.
_PLAIN = {"━": "=", "─": "-", "±": "+-", "…": "...", "–": "-", "×": "x"}
_ERRORS = "kqcap_plain"


def make_streams_robust() -> None:
    """Have standard output and error write what they cannot encode in plain characters."""
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not one that a program put there
            stream.reconfigure(errors=_ERRORS)


def _plain(error):
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    text = "".join(
        _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
        for character in characters
    )
    return text, error.end
