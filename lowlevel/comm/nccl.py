"""NCCL through CuPy, for GPUs of one process: one communicator a device, every call inside a group.

A single thread queues a call for all ranks, each on its own rank's stream. NCCL may wait for kernels that wait for an
allocation (NCCL issue 787): nothing is allocated here, and whoever calls has taken all memory before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowlevel.shapes import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.shapes import Array

# ncclDataType_t and ncclRedOp_t of nccl.h; CuPy has names for all but bfloat16's.
_TYPES = {"float16": 6, "float32": 7, "bfloat16": 9}
_SUM = 0


def communicators(names: Sequence[str]) -> list[Any]:
    """One for each GPU, in their order.

    Parameters
    ----------
    names : sequence of str
        "cuda:0", ...

    Raises
    ------
    ValueError
        No GPUs, or one of them twice.
    ImportError
        CuPy, or its NCCL, is not installed.
    """
    kinds = {name.partition(":")[0] for name in names}
    if kinds != {"cuda"} or len(set(names)) < len(names):
        raise ValueError(f"nccl: for several GPUs, each once; got {', '.join(names)}")
    from lowlevel.cuda import cupy_api

    cupy_api.load()
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        raise ImportError(
            f"nccl: CuPy has no NCCL here ({error}); pip install nvidia-nccl-cu12 (or -cu13), or leave it out"
        ) from error
    return nccl.NcclCommunicator.initAll([int(name.partition(":")[2]) for name in names])


def all_reduce(
    comms: Sequence[Any] | None, arrays: Sequence[Array], streams: Sequence[Any]
) -> None:
    """Queue the sum of all ranks' arrays, in place, on each rank's stream."""
    from cupy.cuda import nccl

    assert comms is not None
    nccl.groupStart()
    try:
        for comm, array, stream in zip(comms, arrays, streams, strict=True):
            kind, address = _TYPES[dtype_name(array.dtype)], array.data.ptr
            comm.allReduce(address, address, array.size, kind, _SUM, stream.ptr)
    finally:
        nccl.groupEnd()
