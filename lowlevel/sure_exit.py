"""`with` blocks whose end no Ctrl-C can skip.

CPython raises KeyboardInterrupt in Python code only: where a function begins, after a call, where a loop goes back
(since 3.10: https://bugs.python.org/issue29988). An `__exit__` in Python begins, so it may be interrupted before
anything of it has run, and nobody calls it again. A `finally` goes on without a look at signals, but what it calls begins.

So here `__exit__` is C: that of io.IOBase, which calls `close`; and `close` is a generator's, which goes on in its
`finally` at once. What that calls may be interrupted, and is then called again.
"""

from __future__ import annotations

import io
import sys
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class SureExit:
    """``__exit__ = SureExit()`` calls ``self._leave(error, again)``, whatever comes in between.

    `_leave` is called again, with `again` true, after an interrupt in it and also when it has ended well; what it has
    done by then it must not mind. An Exception that it raises itself ends the matter.

    error : BaseException or None
        What is being handled where the block ends. It is the block's own unless it was handled already where the
        block began: compare its id with what `id_of_handled` told `__enter__`.
    """

    def __get__(self, manager: Any, kind: Any) -> Any:
        if manager is None:  # contextlib.ExitStack asks the class
            return _leave_now
        callers: list = []
        life = _life(manager, callers)
        next(life)
        closer = _Closer(life.close)
        callers.append(weakref.ref(closer))
        return closer.__exit__


def id_of_handled() -> int:
    """The id of the exception that is being handled (of None: there is none), for an `__enter__` to remember."""
    return id(sys.exc_info()[1])


class _Closer(io.IOBase):
    __slots__ = ("close",)
    closed = True  # nothing is left to be closed when the object goes

    def __init__(self, close):
        self.close = close


def _life(manager, callers):
    error = None
    try:
        try:
            yield
        finally:
            if _is_called(callers):
                error = sys.exc_info()[1].__context__  # of the GeneratorExit that close() raised
                manager._leave(error, False)
    except Exception:
        raise
    except BaseException:
        if _is_called(callers):
            manager._leave(error, True)
        raise


def _is_called(callers):
    """False: the closer is gone, so the generator ends because somebody has only looked at `__exit__`."""
    return bool(callers) and callers[0]() is not None


def _leave_now(manager, *error):
    return manager.__exit__(*error)
