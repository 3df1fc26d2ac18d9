"""Reading trace files, whoever wrote them (the format: `lowlevel.pool.trace`), and snapshots of pools.

Memory is bounded by the longest line that is allowed, not by the file; what the numbers mean together (blocks that
overlap, a block freed twice) is `lowlevel.inspect.run`'s to check.

Lines are checked by hand: jsonschema takes 180 us a line instead of 4.5; msgspec takes 0.7, but refuses the lone surrogates that
Python has in names of files that are no UTF-8, and with them traces that kqcap writes.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import stat
import time
from typing import TYPE_CHECKING

from lowlevel.pool.trace import FORMAT, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


MAX_LINE_BYTES = 64 * 2**20
# JSON values of a line, each of which costs Python far more than its bytes: 100,000 blocks are 2 million.
MAX_LINE_VALUES = 4_000_000
MAX_HEADER_BYTES = 2**16
POLL_SECONDS = 0.1
SNAPSHOT_VERSION = 1
_PYTHON = {"integer": int, "string": str, "array": list, "object": dict, "boolean": bool}
# What is asked of a line is what the published schema says.
_SCHEMA = json.loads(
    importlib.resources.files("lowlevel.inspect").joinpath("trace_schema.json").read_text()
)


def _fields(name):
    """{property: type} that the schema requires of something; "t", "op" and constants are checked elsewhere."""
    definition = _SCHEMA["$defs"][name]
    fields = {}
    for key in definition["required"]:
        what = definition["properties"][key]
        if key not in ("t", "at_peak") and "const" not in what:
            what = _SCHEMA["$defs"]["size"] if "$ref" in what else what
            fields[key] = _PYTHON[what["type"]]
    return fields


_FIELDS = {
    op: _fields(op) for op, what in _SCHEMA["$defs"].items() if "op" in what.get("properties", ())
}
MAX_NUMBER = _SCHEMA["$defs"]["size"]["maximum"]
_LIVE_FIELDS, _SNAPSHOT_FIELDS, _AT_PEAK_FIELDS = map(_fields, ("block", "snapshot", "at_peak"))


class TraceFormatError(ValueError):
    """Not a trace, one of a version that is not known, or a damaged one; names the file and the line."""


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The first line of a trace file, checked.

    Raises
    ------
    OSError, TraceFormatError
    """
    with _open(path) as file:
        return _header(path, file.readline(MAX_LINE_BYTES))


def read_events(path: str | os.PathLike[str], follow: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a trace file one by one, as dicts; those whose "op" is not known are left out.

    A half-written last line is left out, for a trace may be read while it grows.

    Parameters
    ----------
    path : str or os.PathLike
    follow : bool
        At the end of the file, wait for more until the trace is stopped.

    Yields
    ------
    dict
        "t", "op" and the fields that `lowlevel.pool.trace` lists for it: sizes and offsets are ints of 0 to 2**63 - 1.

    Raises
    ------
    OSError, TraceFormatError
    """
    for _, event in numbered_events(path, follow):
        yield event


def numbered_events(
    path: str | os.PathLike[str], follow: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_events`, each with the number of its line, from 2 on."""
    with EventFile(path) as file:
        while True:
            yield from file.new_events()
            if not follow and file.header is None:
                raise no_trace(path)
            if file.ended or not follow:
                return
            time.sleep(POLL_SECONDS)


class EventFile:
    """A trace file that is read as it grows. A context manager.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    path : str or os.PathLike
    header : dict or None
        None while the first line is not whole.
    ended : bool
        The trace was stopped: nothing more will come.

    Raises
    ------
    OSError, TraceFormatError
        The file cannot be read, or is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.header: Any = None
        self.ended = False
        self._number = 1
        self._part = b""  # of a line that is not whole yet
        self._file = _open(path)

    def new_events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, event) for each line that is whole by now.

        Raises
        ------
        TraceFormatError
        """
        if self.header is None:
            line = self._next_line()
            if not line:
                return
            self.header = _header(self.path, line)
        while not self.ended:
            line = self._next_line()
            if not line:
                return
            event = _parse(self.path, self._number, line)
            known = _check_event(self.path, self._number, event)
            self.ended = event["op"] == "stop"
            if known:
                yield self._number, event

    def _next_line(self):
        """The next line with its newline; b"" where the file ends for now."""
        self._part += self._file.readline(MAX_LINE_BYTES - len(self._part))
        if not self._part.endswith(b"\n"):
            if len(self._part) >= MAX_LINE_BYTES:
                number = self._number + (self.header is not None)
                raise damaged(self.path, number, f"over {MAX_LINE_BYTES} bytes long")
            return b""
        line, self._part = self._part, b""
        self._number += self.header is not None
        return line

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def read_snapshot(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A `Pool.snapshot()` from a JSON file, its blocks checked one by one.

    Returns
    -------
    dict

    Raises
    ------
    OSError, TraceFormatError
    """
    with _open(path) as file:
        data = file.read(MAX_LINE_BYTES + 1)
    if len(data) > MAX_LINE_BYTES:
        raise TraceFormatError(f"{path}: over {MAX_LINE_BYTES} bytes long, no snapshot of a pool")
    snapshot = _parse(path, 1, data)
    if snapshot.get("version") != SNAPSHOT_VERSION or "budget" not in snapshot:
        raise TraceFormatError(
            f"{path}: neither a trace nor a pool's snapshot of version {SNAPSHOT_VERSION}"
        )
    _check_fields(path, 1, "the snapshot", snapshot, _SNAPSHOT_FIELDS)
    at_peak = snapshot.get("at_peak")
    if not isinstance(at_peak, dict):
        raise damaged(path, 1, '"at_peak" of the snapshot is no object')
    _check_fields(path, 1, "at_peak", at_peak, _AT_PEAK_FIELDS)
    for blocks in (snapshot["live"], at_peak["live"]):
        _check_blocks(path, 1, blocks)
    return snapshot


def is_trace(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts as a trace does (else it may be a snapshot).

    Raises
    ------
    OSError, TraceFormatError
        No regular file.
    """
    with _open(path) as file:
        line = file.readline(MAX_HEADER_BYTES)
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "format" in header


def damaged(path: str | os.PathLike[str], number: int, what: str) -> TraceFormatError:
    """The error for a line that says something impossible."""
    return TraceFormatError(f"{path}, line {number}: {what}")


# ---------------------------------------------------------------- lines


def _open(path):
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # Opening a pipe would wait for its writer.
        raise TraceFormatError(f"{path}: not a regular file")
    return open(path, "rb")


def no_trace(path: str | os.PathLike[str]) -> TraceFormatError:
    """The error for a file that does not start as a trace does."""
    return TraceFormatError(f"{path}: not a trace (its first line is no header of one)")


def _header(path, line):
    header = _parse(path, 1, line) if line.endswith(b"\n") else {}
    if header.get("format") != FORMAT:
        raise no_trace(path)
    if header.get("version") != VERSION:
        raise TraceFormatError(
            f"{path}: trace version {header.get('version')!r:.40}; this program reads version {VERSION}"
        )
    return header


def _parse(path, number, line):
    # every value but the first of a list or object follows a comma
    if len(line) > MAX_LINE_VALUES:
        n_values = line.count(b",") + line.count(b"[") + line.count(b"{")
        if n_values > MAX_LINE_VALUES:
            raise damaged(path, number, f"over {MAX_LINE_VALUES} values")
    try:
        value = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise damaged(path, number, f"no JSON ({error})") from None
    if not isinstance(value, dict):
        raise damaged(path, number, "no JSON object")
    return value


def _no_constant(text):
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _check_event(path, number, event):
    """Whether the op is known; what it must bring is then there and of its type."""
    op, seconds = event.get("op"), event.get("t")
    if not isinstance(op, str):
        raise damaged(path, number, 'no "op"')
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_NUMBER:
        raise damaged(path, number, f'"t" is {seconds!r:.40}')
    if op not in _FIELDS:
        return False
    _check_fields(path, number, f'op "{op}"', event, _FIELDS[op])
    if op == "resync":
        _check_blocks(path, number, event["live"])
    elif op == "alloc":
        _check_shape(path, number, event["shape"])
    return True


def _check_fields(path, number, of_what, values, fields):
    for key, kind in fields.items():
        value = values.get(key)
        if type(value) is not kind or (kind is int and not 0 <= value <= MAX_NUMBER):
            raise damaged(path, number, f'"{key}" of {of_what} is {value!r:.100}')


def _check_blocks(path, number, blocks):
    for block in blocks:
        if not isinstance(block, dict):
            raise damaged(path, number, f"a block is {block!r:.100}")
        _check_fields(path, number, "a block", block, _LIVE_FIELDS)
        _check_shape(path, number, block["shape"])


def _check_shape(path, number, shape):
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_NUMBER:
            raise damaged(path, number, f'"shape" is {shape!r:.100}')
