"""Numba's disk cache for kernels that are closures.

A factory makes similar kernels from different helpers (a format's decoder, a writer). Numba keys
such a kernel by a pickle of the helpers, which holds a random number per process: its entries would
never be found again, and a new one would be written each time.
"""

import types

import numpy as np
from numba.core import caching
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic


def _identity(value):
    """What tells one captured value from another, the same in every process.

    Code is named, not described: the cache's stamp changes with any source file.
    """
    if isinstance(value, Dispatcher):
        value = value.py_func
    elif isinstance(value, _Intrinsic):
        value = value._defn
    if isinstance(value, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        code = value.__code__
        return value.__module__, value.__qualname__, code.co_firstlineno, _identity(cells)
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


class KernelCache(caching.FunctionCache):
    """A disk cache whose keys name what the function captured."""

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), _identity(self._py_func)

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # A file that another version of this package wrote may name what is no longer there,
            # and a broken one can raise anything: start this kernel's cache anew.
            self.flush()
            return None
