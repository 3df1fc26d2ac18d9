"""Scopes of a pool: what was taken inside is freed when they are left."""


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
        self._entered = False

    def __enter__(self):
        if self._entered:
            raise RuntimeError(f"scope {self.name!r} was entered before: make a new one each time")
        self._pool._check_open()
        scopes = self._pool._scopes()
        self._entered = True
        if scopes:
            self.path = f"{scopes[-1].path}/{self.name}"
        scopes.append(self)
        return self

    def __exit__(self, kind, error, traceback):
        scopes = self._pool._scopes()
        if not scopes or scopes[-1] is not self:
            inner = f"scope {scopes[-1].path!r} is the innermost" if scopes else "it is in none"
            raise RuntimeError(
                f"scope {self.path!r} left out of order or by a thread that did not enter it: "
                f"in this thread {inner}"
            )
        scopes.pop()
        self._pool._free_scope(self)
