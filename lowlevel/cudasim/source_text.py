"""Reading preprocessed C++ text just far enough to rewrite declarations in it."""

from __future__ import annotations

import bisect
import re

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
OPENING, CLOSING = tuple("([{"), tuple(")]}")
_MARKER = re.compile(r'^# (\d+) "([^"\n]*)"(.*)$', re.MULTILINE)
_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'')
_BRACKETS = re.compile(_LITERALS.pattern + r"|[(\[{)\]}]")
_SCOPE = re.compile(r'(\bnamespace\b[\w:\s]*|\bextern\s*"[^"]*"\s*)$')


def end_of_group(text: str, start: int) -> int:
    """Index after the bracket that closes the one at `start`; those in literals do not count."""
    depth = 0
    for found in _BRACKETS.finditer(text, start):
        if found.group() in OPENING:
            depth += 1
        elif found.group() in CLOSING:
            depth -= 1
            if depth == 0:
                return found.end()
    raise ValueError("unbalanced brackets")


def without_literals(text: str) -> str:
    """`text` with spaces in place of its string and character literals."""
    return _LITERALS.sub(lambda literal: " " * len(literal.group()), text)


def statement_end(text: str, start: int) -> int:
    """Index of the semicolon that ends the statement."""
    position = start
    while found := _BRACKETS.search(text, position):
        semicolon = text.find(";", position, found.start())
        if semicolon >= 0:
            return semicolon
        position = end_of_group(text, found.start()) if found.group() in OPENING else found.end()
    return text.index(";", position)


def split_top_level(text: str) -> list[str]:
    """`text` split at commas outside all brackets, template ones too."""
    parts, depth, angle, start = [], 0, 0, 0
    for i, char in enumerate(without_literals(text)):
        if char in OPENING:
            depth += 1
        elif char in CLOSING:
            depth -= 1
        elif depth == 0 and char == "<":
            angle += 1
        elif depth == 0 and char == ">":
            angle -= 1
        elif depth == 0 and angle == 0 and char == ",":
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return parts


def declared_name(declarator: str) -> str:
    """The name that ``const float* __restrict x`` or ``T a[4][N]`` declares."""
    without_attributes = re.sub(r"\b(__attribute__|alignas)\s*\(", "(", declarator)
    while "(" in without_attributes:
        start = without_attributes.index("(")
        end = end_of_group(without_attributes, start)
        without_attributes = without_attributes[:start] + " " + without_attributes[end:]
    names = IDENTIFIER.findall(without_attributes.split("[")[0].split("=")[0])
    return names[-1] if names else ""


def statement_start(text: str, position: int) -> int:
    """Where the declaration that holds `position` begins: after ; { } or a line marker."""
    start = max(text.rfind(char, 0, position) for char in ";{}") + 1
    markers = list(re.finditer(r"^#.*\n", text[start:position], re.MULTILINE))
    return start + markers[-1].end() if markers else start


def line_breaks(text: str) -> str:
    return "\n" * text.count("\n")


class FileScope:
    """Which positions of a text lie outside all braces but those of namespaces and ``extern "C"``."""

    def __init__(self, text: str) -> None:
        self._starts, self._ends = [], []  # of the outermost other braces
        opened: list[bool] = []  # of each open brace: is it a namespace's?
        for found in _BRACKETS.finditer(text):
            if found.group() == "{":
                is_namespace = _SCOPE.search(text, max(found.start() - 200, 0), found.start())
                if not is_namespace and all(opened):
                    self._starts.append(found.start())
                opened.append(is_namespace is not None)
            elif found.group() == "}" and opened and not opened.pop() and all(opened):
                self._ends.append(found.end())

    def __contains__(self, position):
        index = bisect.bisect_right(self._starts, position) - 1
        return index < 0 or (index < len(self._ends) and self._ends[index] <= position)


def place_of(text: str, position: int) -> tuple[str, int, bool]:
    """(file, line, is it a system header) of a position, by the preprocessor's line markers."""
    markers = list(_MARKER.finditer(text, 0, position))
    if not markers:
        return "", text.count("\n", 0, position) + 1, False
    marker = markers[-1]
    line = int(marker[1]) + text.count("\n", marker.end(), position) - 1
    return marker[2], line, "3" in marker[3].split()
