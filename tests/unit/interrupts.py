"""KeyboardInterrupt at a chosen bytecode of the library, without a signal."""

import linecache
import os
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
        self._left = n
        self._is_counted = is_counted
        self._event = "line" if by_line else "opcode"
        self._files = {}
        self._after_call = {}  # frame -> whether its last bytecode was a call

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
                raise KeyboardInterrupt
        return self._strike

    def _may_come(self, frame):
        code, at = frame.f_code, frame.f_lasti
        is_return = _NAMES[code.co_code[at]].startswith("RETURN_")
        if is_return and code.co_name in ("__enter__", "empty"):
            return False
        line = linecache.getline(code.co_filename, frame.f_lineno).lstrip()
        was_call = self._after_call.get(frame, False)
        if self._event == "opcode":
            self._after_call[frame] = "CALL" in _NAMES[code.co_code[at]]
        return not line.startswith("with ") or was_call


def _names():
    import opcode

    return opcode.opname


_NAMES = _names()


def sweep(run, check, **how):
    """``run()`` once for each place that an interrupt may come at, and ``check()`` after each; how many there were."""
    n, struck = 0, True
    while struck:
        n += 1
        at = InterruptAt(n, **how)
        try:
            with at:
                run()
        except KeyboardInterrupt:
            pass
        check(n)
        struck = at.struck
    return n
