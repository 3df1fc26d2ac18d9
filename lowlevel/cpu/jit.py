"""How every CPU kernel of this project is compiled: the `kernel` decorator.

Numba's own ``cache=True`` checks only the file a function stands in, not the files whose
functions it inlined. A kernel that uses `simd` would keep running yesterday's machine code
after `simd` changed. `kernel` therefore stamps its cache entries with a digest of all kernel
sources of its package, and goes on without a cache where no folder can be written.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import TYPE_CHECKING, Any

import numba
from numba.core import ccallback, sigutils

from .inline_compiler import InlineCompiler
from .kernel_cache import KernelCache, NoCache

if TYPE_CHECKING:
    from collections.abc import Callable


_HERE = pathlib.Path(__file__).resolve().parent
_tables: dict = {}  # package folder -> files beside it that its kernels take constants from


def takes_constants_from(package_file: str, *table_files: str) -> None:
    """Let the kernels of a package be compiled anew when one of these files changes.

    Parameters
    ----------
    package_file : str
        ``__file__`` of the package's __init__.py, which calls this before it has a kernel.
    table_files : str
        Files outside the package whose numbers stand in its kernels.
    """
    _tables[pathlib.Path(package_file).resolve().parent] = tuple(map(pathlib.Path, table_files))


@functools.cache
def _sources_digest(folder):
    """Digest of every .py file in `folder`, in all of the package "cpu" that it is of, in lowlevel/cpu, and of
    the files that the package takes constants from."""
    rooms = [parent for parent in (folder, *folder.parents) if parent.name == "cpu"]
    own = rooms[-1].rglob("*.py") if rooms else folder.glob("*.py")
    tables = [path for room in rooms for path in _tables.get(room, ())]
    digest = hashlib.sha1(numba.__version__.encode())
    for path in sorted({*_HERE.rglob("*.py"), *own, *tables}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _disk_cache(function):
    """A Numba disk cache for `function`, or a `NoCache` where no cache folder is writable."""
    try:
        cache = KernelCache(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return NoCache()
    folder = pathlib.Path(function.__code__.co_filename).resolve().parent
    cache.add_stamp(_sources_digest(folder))
    return cache


def kernel(
    function: Any = None,
    *,
    fastmath: bool | set[str] = False,
    inline: bool = False,
    allocates: bool = False,
) -> Any:
    """Compile `function` without the GIL, without bounds checks, cached on disk.

    Parameters
    ----------
    function : callable
        A Python function in Numba's subset. Division follows C (no ZeroDivisionError).
    fastmath : bool or set of str
        LLVM fast-math flags; off by default because NaN, inf and exact rounding matter here.
    inline : bool
        True for a helper that only other kernels call: LLVM inlines it, nothing is cached for it.
    allocates : bool
        True for a kernel that makes arrays. All others go without Numba's reference counts, which
        cost an atomic operation for each array that is handed to a helper, and compile time.
    """
    if function is None:
        return functools.partial(kernel, fastmath=fastmath, inline=inline, allocates=allocates)
    # Entry points that nobody calls would only cost compile time: C's, and for helpers Python's.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    options |= {"no_cfunc_wrapper": True, "forceinline": inline, "no_cpython_wrapper": inline}
    options["_nrt"] = allocates
    if inline:
        options["pipeline_class"] = InlineCompiler
    dispatcher = numba.njit(**options)(function)
    if not inline:
        dispatcher._cache = _disk_cache(function)
    return dispatcher


class CKernel:
    """A kernel that compiled code calls through its address, compiled when first asked for it."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.function, self.signature = function, signature

    @functools.cached_property
    def _compiled(self):
        signature = sigutils.normalize_signature(self.signature)
        options = {"nopython": True, "error_model": "numpy", "_nrt": False}
        compiled = ccallback.CFunc(self.function, signature, locals={}, options=options)
        compiled._cache = _disk_cache(self.function)
        compiled.compile()
        return compiled

    @property
    def address(self) -> int:
        """The compiled function's address (int), valid as long as this object lives."""
        return self._compiled.address


def c_kernel(signature: Any) -> Callable[[Callable[..., Any]], CKernel]:
    """Decorator: a function with C calling convention, e.g. ``@c_kernel("void(int64, int64)")``.

    Arguments are scalars or pointers; a pointer becomes an array by `numba.carray`.
    """
    return lambda function: CKernel(function, signature)


# A kernel that takes tasks, ``(argument, worker, counter, max_tasks)``: the address of what it works on, the number of its
# worker, the address of the number of the next task. True: more tasks may be left. `threads.run_tasks` runs it.
task_kernel = c_kernel("int64(int64, int64, int64, int64)")
