"""Reading trace files, whoever wrote them (the format: `lowlevel.trace`)."""

import json
import math
import time

from lowlevel.trace import FORMAT, VERSION

MAX_LINE_BYTES = 64 * 2**20
MAX_NUMBER = 2**63 - 1
POLL_SECONDS = 0.1
# What each known op must bring besides "t": the rest of the program may then rely on it.
_POOL_FIELDS = {"pool": int, "used": int}
_BLOCK_FIELDS = {**_POOL_FIELDS, "n": int, "offset": int, "size": int, "tag": str}
_CALL_FIELDS = {**_POOL_FIELDS, "call": int, "name": str, "thread": str}
_FIELDS = {
    "attach": {**_POOL_FIELDS, "device": str, "budget": int, "peak": int},
    "alloc": {
        **_BLOCK_FIELDS,
        "scope": str,
        "thread": str,
        "dtype": str,
        "shape": list,
        "site": str,
    },
    "free": _BLOCK_FIELDS,
    "refuse": {**_POOL_FIELDS, "size": int, "tag": str, "error": dict},
    "reset_peak": _POOL_FIELDS,
    "resync": {**_POOL_FIELDS, "live": list},
    "begin": {**_CALL_FIELDS, "details": dict},
    "end": {**_CALL_FIELDS, "ok": bool},
    "detach": {**_POOL_FIELDS, "snapshot": dict},
    "stop": {"n_events": int},
}


class TraceFormatError(ValueError):
    """Not a trace, one of a version that is not known, or a damaged one; names the file and the line."""


def read_header(path):
    """The first line of a trace file, checked.

    Raises
    ------
    OSError, TraceFormatError
    """
    with open(path, "rb") as file:
        return _header(path, file.readline(MAX_LINE_BYTES))


def read_events(path, follow=False):
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
        "t", "op" and the fields that `lowlevel.trace` lists for it: sizes and offsets are ints of 0 to 2**63 - 1.

    Raises
    ------
    OSError, TraceFormatError
    """
    with open(path, "rb") as file:
        _header(path, _whole_line(path, file, 1, follow))
        number = 1
        while True:
            number += 1
            line = _whole_line(path, file, number, follow)
            if not line:
                return
            event = _parse(path, number, line)
            if _check_event(path, number, event):
                yield event
            if event["op"] == "stop":
                return


def _whole_line(path, file, number, follow):
    """The next line with its newline; b"" at the end of the file."""
    line = b""
    while True:
        line += file.readline(MAX_LINE_BYTES - len(line))
        if line.endswith(b"\n"):
            return line
        if len(line) >= MAX_LINE_BYTES:
            raise _damaged(path, number, f"over {MAX_LINE_BYTES} bytes long")
        if not follow:
            return b""
        time.sleep(POLL_SECONDS)


def _header(path, line):
    header = _parse(path, 1, line) if line.endswith(b"\n") else {}
    if header.get("format") != FORMAT:
        raise TraceFormatError(f"{path}: not a trace (its first line is no header of one)")
    if header.get("version") != VERSION:
        raise TraceFormatError(
            f"{path}: trace version {header.get('version')!r}; this program reads version {VERSION}"
        )
    return header


def _parse(path, number, line):
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, f"no JSON ({error})") from None
    if not isinstance(value, dict):
        raise _damaged(path, number, "no JSON object")
    return value


def _no_constant(text):
    raise ValueError(f"{text} is no number")


def _check_event(path, number, event):
    """Whether the op is known; what it must bring is then there and of its type."""
    op, seconds = event.get("op"), event.get("t")
    if not isinstance(op, str):
        raise _damaged(path, number, 'no "op"')
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0:
        raise _damaged(path, number, f'"t" is {seconds!r}')
    for key, kind in _FIELDS.get(op, {}).items():
        value = event.get(key)
        if type(value) is not kind or (kind is int and not 0 <= value <= MAX_NUMBER):
            raise _damaged(path, number, f'"{key}" of op "{op}" is {value!r:.100}')
    return op in _FIELDS


def _damaged(path, number, what):
    return TraceFormatError(f"{path}, line {number}: {what}")
