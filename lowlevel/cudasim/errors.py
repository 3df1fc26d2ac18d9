"""What can go wrong: everything is a CudaSimError; what a kernel did wrong is a KernelError."""

from __future__ import annotations


class CudaSimError(RuntimeError):
    """Base of all errors of this package."""


class CompilerNotFoundError(CudaSimError):
    """No C++ compiler on this machine, or none that can read what comes with this package; the message says
    what would help."""


class CompileError(CudaSimError):
    """The source does not compile; the message is the compiler's, with the source's own lines."""


class ArgumentError(CudaSimError, TypeError):
    """An argument does not fit the kernel's parameter; the message names the parameter."""


class LaunchError(CudaSimError, ValueError):
    """Grid, block or shared memory that no device accepts."""


class KernelError(CudaSimError):
    """A kernel did something wrong.

    Attributes
    ----------
    kernel : str
    file, line : str or None, int or None
        Where in the source, as far as known.
    block, thread : tuple of int
        blockIdx and threadIdx.
    """

    def __init__(
        self,
        message: str,
        kernel: str = "",
        file: str | None = None,
        line: int | None = None,
        block: tuple | None = None,
        thread: tuple | None = None,
    ) -> None:
        super().__init__(message)
        self.kernel, self.file, self.line = kernel, file, line
        self.block, self.thread = block, thread


class OutOfBoundsError(KernelError):
    """An access outside an argument or a shared variable, or a write through a const pointer."""


class MisalignedError(KernelError):
    """A vector load or store, or an asynchronous copy, at an address that is not aligned for it."""


class UninitialisedError(KernelError):
    """A read of memory that nobody has written (race mode)."""


class RaceError(KernelError):
    """Two unordered accesses to one byte, one of them a write (race mode)."""


class BarrierError(KernelError):
    """A barrier or warp collective that not all its threads reach."""


class HangError(KernelError):
    """A kernel that computes without getting anywhere."""


class UndefinedBehaviourError(KernelError):
    """Undefined by the C++ standard: overflow, bad shift, division by zero (mostly ub mode)."""


class KernelAssertionError(KernelError):
    """An assert() in the kernel, or __trap()."""


class KernelLaunchError(KernelError):
    """The kernel itself cannot run so: __launch_bounds__, too much static shared memory."""


# By cudasim::Fault in include/cudasim/runtime.h.
BY_FAULT = (
    KernelError,
    OutOfBoundsError,
    MisalignedError,
    UninitialisedError,
    RaceError,
    BarrierError,
    HangError,
    UndefinedBehaviourError,
    KernelAssertionError,
    KernelLaunchError,
    KernelError,
)
