"""A simulator for CUDA C++: runs unmodified .cu files on the host and finds what is wrong in them.

    from lowlevel import cudasim

    module = cudasim.Module("softmax.cu", options=["-DTILE=64"])
    softmax = module.get_function("softmax_rows")
    y = cudasim.empty(x.shape)                       # poison: NaN until somebody writes it
    softmax((n_rows,), (256,), (x, y, np.int32(n_columns)), shared_mem=1024)

The call has CuPy's shape, on NumPy arrays and NumPy scalars (exactly of the declared types). A C++
compiler must be installed: g++, or clang++ (whose lines in messages are coarser); CUDASIM_CXX names
another one. Linux only.

What it runs
------------
``extern "C"`` kernels and template instances (``name_expressions=["softmax<float, 128>"]``); static
and dynamic shared memory, ``extern __shared__`` at file scope too; ``__device__`` variables, which
all blocks of a module share and launches keep; ``__syncthreads`` and its variants; shuffles, votes,
matches and reductions of a warp with any mask; atomics; ``cuda_fp16.h`` and ``cuda_bf16.h``; vector
types; ``__dp4a``, ``__byte_perm``, ``__ldg``, SIMD-in-a-word, directed rounding and fast-math
intrinsics, ``normcdff`` and its kin, ``math_constants.h``; ``clock64``; ``printf`` and ``assert``,
also behind ``<cstdio>``, ``<iostream>`` and ``<assert.h>``; ``cooperative_groups.h`` (blocks, tiles of
a warp, ``reduce``), ``mma.h`` (wmma of 16-bit floats, bytes, tf32) and ``cuda_pipeline.h`` (its
functions). ``__launch_bounds__`` and ``__cluster_dims__`` are checked, ``__maxnreg__`` means nothing.

Instructions that CUDA C++ has no name for come through ``ptx.cuh``, ``wgmma.cuh`` and
``bulk.cuh`` (lowlevel/gpu/include), which are inline PTX on a device and an exact emulation here: ``ldmatrix``,
``mma.sync`` (f16, bf16, tf32, s8), ``cp.async``, named barriers; ``wgmma`` (f16, bf16) with its
descriptors and swizzles; barriers in shared memory (``mbarrier``) and bulk copies of tiles by the copy
engine (TMA).

Not there, and refused with what to do instead (advice.py): inline PTX elsewhere; ``__shared__``
without extern at file scope; ``grid.sync()``, ``coalesced_threads()``, clusters and dynamic
parallelism; ``<cuda/barrier>``, ``<cuda/pipeline>`` and the rest of libcu++; textures and surfaces;
8-bit floats; DPX instructions; cuRAND, CUB, Thrust and CUTLASS.

What it finds
-------------
Each error is an exception with the kernel's file, line, block and thread; all derive from
`KernelError`. A kernel runs in processes of its own (runner.py), so that nothing it does harms the
caller: a runner that crashes is replaced. After an error the arrays are as they were before. Runners
see copies of the arguments, in memory of which up to 256 MiB is kept for the next launch.

always
    Accesses outside an argument or a shared variable: memory ends at an inaccessible page (in the
    orders "reverse" and "lifo": starts at one), the other side is checked for stray writes. An
    argument keeps its address modulo 16, so up to 15 bytes may lie before that page; in "random" and
    "lifo" none do, unless the kernel turns out to load vectors that need it. Writes
    through const pointers. Null pointers. Barriers and warp collectives that not all threads reach,
    early returns before them too (``strict=False`` allows those). Results that depend on unwritten
    memory: it holds NaN. Copies by ``cp.async`` and results of ``wgmma`` that nobody waited for:
    likewise. A missing ``wgmma.fence``; a missing ``fence.proxy.async`` between ``cp.async`` and
    ``wgmma``, or between a write and a bulk copy over it; operands of ``wgmma`` that change before the
    wait for it. Bulk copies that nobody waited for: they hold NaN; more bytes than a barrier was told of,
    more arrivals than it was made for; fewer: a deadlock that says how many. Endless loops
    (`HangError` after ``hang_seconds`` of computing). Too many threads for ``__launch_bounds__``,
    too much shared memory, arguments of another type than declared.
order="fifo" | "reverse" | "random" | "lifo"
    In which order threads and blocks run. A kernel that gives the same result in all four hardly
    misses a barrier.
race=True
    Every load and store is logged: races in shared and global memory, with both lines and threads;
    reads of unwritten shared memory, or of arguments still holding poison; copies read before the
    wait; any write to shared memory without ``fence.proxy.async`` before ``wgmma``; accesses outside by any amount. About ten times slower, on one core.
ub=True
    Misaligned vector accesses, inner array indices, shifts, overflow and what else C++ leaves
    undefined.
`Stream`
    Once a program makes one: work on memory that another stream may still be working on, because
    nothing makes the one wait for the other (streams.py).

`settings` sets these for all launches of a context, so that whole programs can be checked::

    with cudasim.settings(order="lifo", race=True):
        lowlevel.attention(q, k, v)

The environment does so for a process: CUDASIM_ORDER, CUDASIM_SEED, CUDASIM_RACE=1, CUDASIM_UB=1,
CUDASIM_HANG_SECONDS, CUDASIM_WORKERS; CUDASIM_CACHE_DIR is where compiled kernels are kept.

What only a device can show
---------------------------
Rounding inside tensor cores and of fast intrinsics (compare with tolerances); C++ casts of floats
out of an integer's range; the memory model between blocks beyond atomics; what NVRTC rejects (it
knows no host headers, and no INFINITY). A shuffle that reads a lane which does not take part is an
error here, an undefined value there. Two different collectives on one source line count as one.
A pattern where the last block to arrive reads the others' results after ``__threadfence`` is
reported as a race, because blocks are never ordered here; read through ``volatile`` there. Threads
of a block that wait for each other without a barrier must spin on an atomic or call
``__nanosleep``: a loop around a plain ``volatile`` read never lets the others run.
"""

from .arguments import PointerTable, TensorMap
from .array import CudaSimArray, asarray, asnumpy, empty, poison
from .errors import (
    ArgumentError,
    BarrierError,
    CompileError,
    CompilerNotFoundError,
    CudaSimError,
    HangError,
    KernelAssertionError,
    KernelError,
    KernelLaunchError,
    LaunchError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    UndefinedBehaviourError,
    UninitialisedError,
)
from .module import Function, Module
from .settings import Settings, current_settings, settings
from .streams import Event, Stream, StreamError

__all__ = [
    "ArgumentError",
    "BarrierError",
    "CompileError",
    "CompilerNotFoundError",
    "CudaSimArray",
    "CudaSimError",
    "Event",
    "Function",
    "HangError",
    "KernelAssertionError",
    "KernelError",
    "KernelLaunchError",
    "LaunchError",
    "MisalignedError",
    "Module",
    "OutOfBoundsError",
    "PointerTable",
    "RaceError",
    "Settings",
    "Stream",
    "StreamError",
    "TensorMap",
    "UndefinedBehaviourError",
    "UninitialisedError",
    "asarray",
    "asnumpy",
    "current_settings",
    "empty",
    "poison",
    "settings",
]
