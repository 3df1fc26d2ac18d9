"""Scopes of a pool: what was taken inside is freed when they are left."""

import threading


class Scope:
    """What `Pool.scope` returns; see there.

    Attributes
    ----------
    name, path : str
        "attention"; "layer 0/attention" once entered.
    """

    def __init__(self, pool, name):
        self.name = name
        self.path = name
        self.arrays = {}  # id(array) -> array, in the order they were taken
        self._pool = pool
        self._thread = None  # that entered it
        self._scopes = None  # of that thread, outermost first

    def __enter__(self):
        if self._thread is not None:
            raise RuntimeError(f"scope {self.name!r} was entered before: make a new one each time")
        self._pool._check_open()
        self._scopes = self._pool._scopes()
        self._thread = threading.get_ident()
        if self._scopes:
            self.path = f"{self._scopes[-1].path}/{self.name}"
        self._scopes.append(self)
        return self

    def __exit__(self, kind, error, traceback):
        scopes = self._scopes
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"scope {self.path!r} left by a thread that did not enter it")
        if not scopes or scopes[-1] is not self:
            inner = f"{scopes[-1].path!r} is the innermost" if scopes else "this thread is in none"
            raise RuntimeError(f"scope {self.path!r} left out of order: {inner}")
        try:
            self._pool._free_scope(self)
        finally:
            scopes.pop()

    def close(self):
        """Leave the scope unless it was left: a Ctrl-C may strike as `__exit__` is entered."""
        if self._scopes and self in self._scopes:
            self.__exit__(None, None, None)
