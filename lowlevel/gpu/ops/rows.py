"""Rows by index on a device that runs CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..instances import GATHER_ROWS, PUT_ROWS, SCATTER_ADD, SCATTER_ORDER
from . import launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.checks import Rows
    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.plans import Scratch
    from lowlevel.shapes import Array


# rows.cu's GatherCall, PutCall and ScatterCall.
GATHER_CALL = np.dtype(
    [(name, "<i8") for name in ("table_row", "out_row", "id_step", "n_tokens")]
    + [(name, "<i4") for name in ("table_rows", "columns", "aligned", "unused")]
)
PUT_CALL = np.dtype(
    [
        (name, "<i8")
        for name in ("rows_plane", "rows_row", "out_plane", "out_row", "id_step", "n_rows")
    ]
    + [(name, "<i4") for name in ("plane_rows", "columns", "out_rows", "aligned")]
)
SCATTER_CALL = np.dtype(
    [(name, "<i8") for name in ("rows_row", "out_row")]
    + [(name, "<i4") for name in ("n_tokens", "columns", "of_token", "aligned")]
)


def gather(device: LaunchDevice, table: Rows, ids: Array, out: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.gather_rows`; table and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not out.array.size:
        return
    kernel, call = GATHER_ROWS[launch.kinds(table, out)], np.zeros((), GATHER_CALL)
    call["table_row"] = table.row // table.array.itemsize
    call["out_row"] = out.row // out.array.itemsize
    call["id_step"] = ids.strides[0] // ids.itemsize
    _, call["n_tokens"], call["columns"] = out.shape
    call["table_rows"] = table.shape[1]
    call["aligned"] = launch.is_aligned(device, table.array, out.array)
    n_blocks = launch.n_blocks(kernel, out.n_rows, out.shape[2])
    device.launch(kernel, n_blocks, (table.array, ids, out.array, call))


def put(device: LaunchDevice, rows: Rows, ids: Array, out: Rows, n_threads: int | None) -> None:
    """See `lowlevel.ops.put_rows`; rows and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not rows.array.size:
        return
    kernel, call = PUT_ROWS[launch.kinds(rows, out)], np.zeros((), PUT_CALL)
    for name, operand in (("rows", rows), ("out", out)):
        item = operand.array.itemsize
        call[f"{name}_plane"], call[f"{name}_row"] = operand.plane // item, operand.row // item
    call["id_step"] = ids.strides[0] // ids.itemsize
    call["n_rows"], (_, call["plane_rows"], call["columns"]) = rows.n_rows, rows.shape
    call["out_rows"] = out.shape[1]
    call["aligned"] = launch.is_aligned(device, rows.array, out.array)
    n_blocks = launch.n_blocks(kernel, rows.n_rows, rows.shape[2])
    device.launch(kernel, n_blocks, (rows.array, ids, out.array, call))


def scatter_scratch(n_rows: int, n_tokens: int) -> Scratch:
    """What `scatter_add` takes: see `lowlevel.ops.ScatterPlan.scratch`."""
    return (("scatter order", 4 * n_rows), ("scatter starts", 4 * (n_tokens + 1)))


def scatter_add(
    device: LaunchDevice,
    rows: Rows,
    out: Rows,
    tokens: Array | None,
    weights: Array | None,
    n_threads: int | None,
    scratch: Sequence[Array],
) -> None:
    """See `lowlevel.ops.scatter_add`; rows and out as `lowlevel.checks.Rows`."""
    launch.refuse_n_threads(device, n_threads)
    if not rows.array.size or not out.array.size:
        return
    _, n_rows, columns = rows.shape
    n_tokens = out.shape[1]
    order = starts = None
    if tokens is not None:
        order, starts = (part.view(np.int32) for part in scratch)
        token_step = tokens.strides[0] // tokens.itemsize
        n_blocks = -(-(n_rows + n_tokens + 1) // SCATTER_ORDER.block)
        arguments = (tokens, order, starts, token_step, n_rows, n_tokens)
        device.launch(SCATTER_ORDER, n_blocks, arguments)
    kernel, call = SCATTER_ADD[launch.kinds(rows, out)], np.zeros((), SCATTER_CALL)
    call["rows_row"] = rows.row // rows.array.itemsize
    call["out_row"] = out.row // out.array.itemsize
    call["n_tokens"], call["columns"], call["of_token"] = n_tokens, columns, n_rows // n_tokens
    call["aligned"] = launch.is_aligned(device, rows.array, out.array)
    n_blocks = launch.n_blocks(kernel, n_tokens, columns)
    device.launch(kernel, n_blocks, (rows.array, weights, order, starts, out.array, call))
