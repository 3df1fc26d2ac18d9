"""What the launchers of operations on rows share: rows.cuh's side of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.shapes import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.checks import Rows
    from lowlevel.devices import Device
    from lowlevel.gpu.instances import Kernel
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array


# rows.cuh's RowsCall.
CALL = np.dtype(
    [(f"{name}_{axis}", "<i8") for name in ("x", "y", "out") for axis in ("plane", "row")]
    + [("n_rows", "<i8")]
    + [(name, "<i4") for name in ("plane_rows", "columns", "aligned", "y_type")]
)
PIECE = 8  # kPiece: columns of a thread
_ALIGNMENT = 16  # bytes that are read at once
# rows.cuh's FloatType, which kernels of other packages share.
FLOAT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


def refuse_n_threads(device: Device, n_threads: int | None) -> None:
    """Raise ValueError for a number of threads: a GPU's launches have their own."""
    if n_threads is not None:
        raise ValueError(f"n_threads: {device.name} has no use for it; leave it out")


def kinds(*rows: Rows) -> tuple[str, ...]:
    """The names of the dtypes of `lowlevel.checks.Rows`."""
    return tuple(dtype_name(operand.array.dtype) for operand in rows)


def is_aligned(device: LaunchDevice, *arrays: Array | None) -> bool:
    """Whether 16 bytes at a time may be read from the start of every row of every array (None: of no matter)."""
    return not any(
        number % _ALIGNMENT
        for array in arrays
        if array is not None
        for number in (device.address(array), *array.strides[:-1])
    )


def rows_call(
    device: LaunchDevice, aligned_too: Sequence[Any] = (), **operands: Rows
) -> np.ndarray:
    """A RowsCall of some of x, y and out, `lowlevel.checks.Rows` of one shape.

    `aligned_too`: other arrays that are read in the same pieces.
    """
    call = np.zeros((), CALL)
    for name, rows in operands.items():
        item = rows.array.itemsize
        call[f"{name}_plane"], call[f"{name}_row"] = rows.plane // item, rows.row // item
    first = next(iter(operands.values()))
    call["n_rows"], (_, call["plane_rows"], call["columns"]) = first.n_rows, first.shape
    arrays = (rows.array for rows in operands.values())
    call["aligned"] = is_aligned(device, *arrays, *aligned_too)
    return call


def n_blocks(kernel: Kernel, n_rows: int, columns: int) -> int:
    """Blocks of a grid with a thread a piece."""
    return -(-n_rows * -(-columns // PIECE) // kernel.block)
