"""Every CUDA kernel and template instance: the one table that the loader, the tests and
``python -m lowlevel.cuda.resources`` share.

The ground's own kernels stand here. A floor above lists its own in a module of the same shape, named
in `TABLES` and imported only by those who want all there is.
"""

import importlib
from typing import NamedTuple

TABLES = ("lowlevel.cuda.instances", "quant.cuda.instances")


class Kernel(NamedTuple):
    """A kernel that can be launched.

    Attributes
    ----------
    package, file : str
        Where the source is: "quant.cuda", "q2_k.cu".
    name : str
        An extern "C" function, or a template instance such as ``"dequantize<Q2_K, Float32, true>"``.
    parameters : tuple of str
        NumPy type codes in order: "i8" a scalar, "f4*" and "const u1*" arrays of that type,
        "const V*" arrays of any; "V80" a structure of 80 bytes.
    block : int
        Threads of a block, as ``__launch_bounds__`` says.
    """

    package: str
    file: str
    name: str
    parameters: tuple
    block: int

    @property
    def source(self):
        return self.package, self.file


# The widest unit that divides addresses, strides and the innermost length copies fastest.
COPY_UNITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "uint2", 16: "uint4"}
COPY = {
    n_bytes: Kernel(
        package="lowlevel.cuda",
        file="concat.cu",
        name=f"copy_strided<{unit}>",
        parameters=("const V*", "V*", "V208", "u4"),
        block=256,
    )
    for n_bytes, unit in COPY_UNITS.items()
}
KERNELS = tuple(COPY.values())


def all_kernels():
    """Every `Kernel` of all floors."""
    return tuple(kernel for table in TABLES for kernel in importlib.import_module(table).KERNELS)


def of_source(source):
    """The kernels of one file, (package, file): they are compiled together."""
    (table,) = (name for name in TABLES if name.rpartition(".")[0] == source[0])
    return tuple(k for k in importlib.import_module(table).KERNELS if k.source == source)
