"""KeyboardInterrupt at a chosen bytecode of the library, without a signal."""

import linecache
import opcode
import os
import random
import sys

import lowlevel
import quant

FOLDERS = tuple(os.path.dirname(package.__file__) for package in (lowlevel, quant))


class InterruptAt:
    """Raises KeyboardInterrupt before the n-th bytecode that runs in the library's files; once.

    Left out is what CPython does not tear apart (since 3.10, https://bugs.python.org/issue29988): between the body of
    a ``with`` and the call of its `__exit__`, and the return of an `__enter__` or of `Pool.empty` to its caller.

    Parameters
    ----------
    n : int
        From 1.
    is_counted : callable
        ``is_counted(path below the library's folder)``: whether a file's bytecodes count.
    by_line : bool
        Lines count instead of bytecodes.

    Attributes
    ----------
    struck : bool
    """

    def __init__(self, n, is_counted=lambda path: True, by_line=False):
        self.struck = False
        self.where = None
        self._left = n
        self._is_counted = is_counted
        self._event = "line" if by_line else "opcode"
        self._files = {}
        self._called_at = {}  # frame -> the line of its last bytecode, if that was a call

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        name = frame.f_code.co_filename
        wanted = self._files.get(name)
        if wanted is None:
            here = next((f for f in FOLDERS if name.startswith(f + os.sep)), None)
            wanted = bool(here and self._is_counted(os.path.relpath(name, os.path.dirname(here))))
            self._files[name] = wanted
        if not wanted or self.struck:
            return None
        frame.f_trace_opcodes = True
        return self._strike

    def _strike(self, frame, event, argument):
        if event == self._event and not self.struck and self._may_come(frame):
            self._left -= 1
            if self._left == 0:
                self.struck = True
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._strike

    def _may_come(self, frame):
        key = frame.f_code, frame.f_lasti
        is_left_out, is_call, of_with = _KNOWN.get(key) or _about(frame, key)
        may_come = not is_left_out and (not of_with or self._called_at.get(frame) == of_with)
        if self._event == "opcode":
            self._called_at[frame] = frame.f_lineno if is_call else None
        return may_come


_KNOWN = {}  # (code, offset) -> (left out, a call, the line if a `with` stands there)


def _about(frame, key):
    code, at = key
    name = opcode.opname[code.co_code[at]]
    is_return = name.startswith("RETURN_") and code.co_name in ("__enter__", "empty")
    text = linecache.getline(code.co_filename, frame.f_lineno or 0).lstrip()
    of_with = frame.f_lineno if text.startswith("with ") else None
    # A NOP may stand where a `with` ends.
    _KNOWN[key] = is_return or name == "NOP", name.startswith("CALL"), of_with
    return _KNOWN[key]


def sweep(run, check, step=1, **how):
    """``run()`` interrupted at each place in turn, ``check(n)`` after each; how many places there are.

    step : int
        Of so many places in a row only one, from a random start on.
    """
    n, struck = random.randrange(step) + 1 - step, True
    while struck:
        n += step
        at = InterruptAt(n, **how)
        try:
            with at:
                run()
        except KeyboardInterrupt:
            pass
        try:
            check(n)
        except AssertionError as error:
            raise AssertionError(f"interrupted at {at.where}, place {n}") from error
        struck = at.struck
    return n
