"""Scopes of a pool: what was taken inside is freed when they are left."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from lowlevel.sure_exit import SureExit


class OfThread(threading.local):
    """The scopes a thread is in: the innermost, which knows the one around it."""

    innermost: Scope | None = None

    def scopes(self) -> list[Scope]:
        """All of them, outermost first."""
        found: list[Scope] = []
        scope = self.innermost
        while scope is not None:
            found.append(scope)
            scope = scope.outer
        return found[::-1]


class _Pool(Protocol):
    """What a scope asks of its pool."""

    _of_thread: OfThread

    def _check_open(self) -> None: ...

    def _free_scope(self, scope: Scope) -> None: ...

    def _mend(self) -> None: ...


class Scope:
    """What `Pool.scope` returns; see there.

    Attributes
    ----------
    name, path : str
        "attention"; "layer 0/attention" once entered.
    """

    def __init__(self, pool: _Pool, name: str) -> None:
        self.name = name
        self.path = name
        self.arrays: dict[Any, Any] = {}  # id(array) -> array, in the order they were taken
        self.thread: threading.Thread | None = None  # that entered it
        self.outer: Scope | None = None  # the scope around it
        self._pool = pool
        self._of_thread = pool._of_thread
        self._is_leaving = False

    def __enter__(self) -> Scope:
        if self.thread is not None:
            raise RuntimeError(f"scope {self.name!r} was entered before: make a new one each time")
        self._pool._check_open()
        outer = self.outer = self._of_thread.innermost
        if outer is not None:
            self.path = f"{outer.path}/{self.name}"
        self.thread = threading.current_thread()
        try:
            self._of_thread.innermost = self
            return self
        except BaseException:
            self._of_thread.innermost = outer
            raise

    __exit__ = SureExit()

    def _leave(self, error, again):
        if not (again and self._is_leaving):
            self._check_innermost()
            self._is_leaving = True
        self._of_thread.innermost = self.outer
        if self.arrays:
            self._pool._free_scope(self)
        elif again:
            self._pool._mend()

    def _check_innermost(self):
        if threading.current_thread() is not self.thread:
            raise RuntimeError(f"scope {self.path!r} left by a thread that did not enter it")
        innermost = self._of_thread.innermost
        if innermost is not self:
            where = (
                f"{innermost.path!r} is the innermost" if innermost else "this thread is in none"
            )
            raise RuntimeError(f"scope {self.path!r} left out of order: {where}")

    def close(self) -> None:
        """Leave the scope, unless it was left or never entered."""
        if self.thread is not None and not self._is_leaving:
            self.__exit__(None, None, None)
