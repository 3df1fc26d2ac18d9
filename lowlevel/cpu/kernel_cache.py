"""Numba's disk cache, made to hold for kernels that are closures and for several processes at once.

A factory makes similar kernels from different helpers (a format's decoder, a writer). Numba keys
such a kernel by a pickle of the helpers, which holds a random number per process: its entries would
never be found again, and a new one would be written each time.

Numba also numbers a function's cache files and notes in an index which is which. Two processes that
compile at the same time can take the same number, and then one kernel loads the other's code. Here
a file's name is a digest of what it holds, there is no index, and nothing to mix up.

Numba keeps its files in the package's own __pycache__, where they outlive an uninstallation. These are kept
in the user's cache folder (`lowlevel.cache_folder`), or where NUMBA_CACHE_DIR says, a folder for each folder
of sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pathlib
import types
from typing import Any

import numpy as np
from numba.core import caching, config
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from lowlevel import cache_folder

from . import compile_notice


def _identity(value):
    """What tells one captured value from another, the same in every process.

    Functions by name would not do: two lambdas on a line, or what `exec` makes, share theirs.
    What they find in their modules is not described; the cache's stamp changes with any source.
    """
    if isinstance(value, Dispatcher):
        value = value.py_func
    elif isinstance(value, _Intrinsic):
        value = value._defn
    if isinstance(value, types.FunctionType):
        captured = tuple(cell.cell_contents for cell in value.__closure__ or ())
        parts = (captured, value.__defaults__, value.__code__)
        return value.__module__, value.__qualname__, *map(_identity, parts)
    if isinstance(value, types.CodeType):
        return value.co_code.hex(), value.co_names, _identity(value.co_consts)
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


def _digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


class _CacheFiles(caching.IndexDataCacheFile):
    """One file per entry, ``function-line.pyXY.<stamp>-<key>.nbc``, and no index."""

    def __init__(self, cache_path, filename_base, source_stamp):
        super().__init__(cache_path, filename_base, source_stamp)
        self._filename_base = filename_base

    @property
    def _stamp(self):
        return _digest((self._version, self._source_stamp))

    def _name(self, key):
        return f"{self._filename_base}.{self._stamp}-{_digest(key)}.nbc"

    def load(self, key):
        try:
            return self._load_data(self._name(key))
        except OSError:
            return None

    def save(self, key, data):
        self._save_data(self._name(key), data)  # written aside and renamed: never seen half done
        self._remove(lambda name: f".{self._stamp}-" not in name)

    def flush(self):
        self._remove(lambda name: True)

    def _remove(self, is_unwanted):
        """Remove files of this function, wherever its line was in other versions of the source."""
        function, _, line_and_python = self._filename_base.rpartition("-")
        python = line_and_python.partition(".")[2]
        for path in pathlib.Path(self._cache_path).glob(f"{function}-*.{python}.*"):
            if is_unwanted(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()


class _Locator(caching._SourceFileBackedLocatorMixin, caching._CacheLocator):
    """Where a function's cache files are."""

    def __init__(self, py_func, py_file):
        self._py_file = py_file
        self._lineno = py_func.__code__.co_firstlineno

    def get_cache_path(self):
        return str(_root(config.CACHE_DIR) / self.get_suitable_cache_subpath(self._py_file))

    @classmethod
    def from_function(cls, py_func, py_file):
        """A locator, or None where nothing can be written or the source is no file (a zip's)."""
        if _root(config.CACHE_DIR) is None or not pathlib.Path(py_file).is_file():
            return None
        locator = cls(py_func, py_file)
        return locator if _is_writable(locator.get_cache_path()) else None


@functools.cache
def _root(chosen):
    """The folder of all kernels, or None; `chosen` is Numba's, which goes first where it is not empty."""
    if chosen:
        return pathlib.Path(chosen)
    return next(cache_folder.usable(cache_folder.KERNELS), None)


@functools.cache
def _is_writable(path):
    """Asked once a folder: there are hundreds of kernels."""
    return cache_folder.is_writable(pathlib.Path(path))


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)  # type: ignore[assignment]  # a list in Numba


class KernelCache(caching.FunctionCache):
    """A disk cache whose keys name what the function captured, and whose troubles stop no kernel."""

    _impl_class = _Impl

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _CacheFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def add_stamp(self, stamp: Any) -> None:
        """Let entries count only as long as `stamp` (any value with a repr) stays what it is."""
        self._cache_file._source_stamp = (self._cache_file._source_stamp, stamp)

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), _identity(self._py_func)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:
            # A broken file can raise anything; the compiled kernel will take its place.
            found = None
        if found is None:
            compile_notice.begin(pathlib.Path(self.cache_path).parent)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk, a folder that is gone: as without a cache
            super().save_overload(sig, data)
        compile_notice.end()


class NoCache(caching.NullCache):
    """Where nothing can be kept: all that it does is to say that kernels are compiled."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        compile_notice.begin(None)

    def save_overload(self, sig: Any, data: Any) -> None:
        compile_notice.end()
