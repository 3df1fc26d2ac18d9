"""Products on a device that runs CUDA kernels: prepares x and launches what the plan says.

A few rows of x stream against the weights (matvec), more of them meet tiles; both take all experts of
a call in one launch, by a table of groups: rows of x, sorted by expert, that meet one matrix.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.gpu.ops.launch import FLOAT_TYPES
from lowlevel.shapes import dtype_name

from ...formats import FORMATS
from ..constants import constants
from ..dequantize.run import alignment as alignment_of
from ..instances import (
    GATHER_ROWS,
    MATMUL_EXACT,
    MATMUL_TILES,
    MATMUL_WGMMA,
    MATVEC,
    MATVEC_EXACT,
    MATVEC_FEW,
    MATVEC_SINGLE,
    QUANTISE_ROWS,
    SORT_ROWS,
    SORT_THREADS,
    TILE_ROWS,
    WGMMA_ROWS,
    bytes_of_x,
)
from .plan import CHUNK_WEIGHTS, GROUP_FIELDS, SLOT_MULTIPLE
from .sizes import exact_sizes, stream_sizes, tile_sizes, wgmma_shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.gpu.launch_device import LaunchDevice
    from lowlevel.shapes import Array

    from ...tensor import QuantTensor
    from .plan import MatmulPlan


# matmul_call.cuh's MatmulCall.
CALL = np.dtype(
    [(name, "<i8") for name in "expert_stride out_stride".split()]
    + [(name, "<i4") for name in "row_stride row_bytes n_rows columns n_slots n_groups".split()]
    + [(name, "<i4") for name in "x_columns pieces counted x_type out_type image_slots".split()]
    + [(name, "<i4") for name in ("row_lanes", "unused")]
)
assert CALL.itemsize == 72
# matmul_call.cuh's RowsOfX.
ROWS = np.dtype(
    [("stride", "<i8")] + [(name, "<i4") for name in ("type", "n_rows", "columns", "unused")]
)
_SIZES = ("columns", "n_slots", "n_groups", "counted", "x_columns", "image_slots", "row_lanes")
_PIECE = 16
# So many rows with a matrix each are not sorted: what two of them share stays in the second-level cache.
ROWS_BY_ID = 128
# Rows of weights in one launch: they are counted in 32 bits.
MAX_ROWS = 2**30


def run(
    plan: MatmulPlan,
    device: LaunchDevice,
    x: Array,
    matrices: Sequence[QuantTensor],
    out: Array,
    experts: Array | None,
    x_rows: None,
    scratch: Array,
) -> None:
    """Fill `out`, in the order of the device's other work; everything is checked, see quant.matmul.

    Parameters
    ----------
    plan : MatmulPlan
    x, out : array of float32, float16 or bfloat16, (n, columns) and (n, rows of all matrices)
    matrices : sequence of QuantTensor, (rows, columns) or (experts, rows, columns)
        Of one format and one number of columns and experts.
    experts : array of int, (n,), or None
        On the host, sorted out there, or on the device (int32 or int64), of which the host knows nothing.
    x_rows : array of int32, (n,), or None
        On the device: the row of x that each row of the product is of.
    scratch : array of uint8
        At least plan.scratch_bytes.
    """
    parts = {
        name: scratch[at : at + n_items * np.dtype(dtype).itemsize].view(dtype)
        for name, (at, dtype, n_items) in plan.sections.items()
    }
    # How many groups there are, and what the kernels find where: see MatmulCall.
    n_groups, counted = plan.most_groups, 0
    if experts is None:
        pass
    elif device.address(experts) is None:
        n_groups = _sort_on_host(plan, device, parts, experts)
    elif _are_groups(plan, experts):
        del parts["order"]
        parts["groups"], n_groups, counted = experts, len(out), -matrices[0].shape[0]
    else:
        _sort_on_device(plan, device, parts, experts, matrices[0].shape[0], out)
        counted = 1
    groups = n_groups, counted
    block = matrices[0].format
    if plan.path == "single":
        parts["x"] = x
    else:
        _prepare(plan, device, x, x_rows, len(out), block, parts)
    x_type = FLOAT_TYPES[dtype_name(x.dtype)]
    at = 0
    for some in _at_once(plan, matrices):
        n_rows = some[0].shape[-2]
        # A row's distance from the next has 32 bits too.
        max_rows = MAX_ROWS if all(abs(t.data.strides[-2]) < 2**31 for t in some) else 1
        if n_rows <= max_rows:
            target = out[:, at : at + len(some) * n_rows] if len(matrices) > len(some) else out
            _launch(plan, device, some, target, parts, groups, x_type)
        else:
            for t in some:
                for first in range(0, n_rows, max_rows):
                    rows = slice(first, min(first + max_rows, n_rows))
                    target = out[:, at + rows.start : at + rows.stop]
                    _launch(plan, device, (t[..., rows, :],), target, parts, groups, x_type)
                at += n_rows
            continue
        at += len(some) * n_rows


def _at_once(plan, matrices):
    """The matrices in the launches that take them: two that are alike in one, where a kernel can."""
    if plan.path == "wgmma" and len(matrices) == 2:
        first, second = (t.data for t in matrices)
        if first.shape == second.shape and first.strides == second.strides:
            return (matrices,)
    return [(t,) for t in matrices]


def _kernel(plan, name):
    if plan.path == "wgmma":
        return MATMUL_WGMMA[name, plan.tile]
    if plan.path == "single":
        return MATVEC_SINGLE[name]
    if plan.path == "few":
        return MATVEC_FEW[name, plan.width]
    if plan.activations == "float32":
        return MATVEC_EXACT[name, plan.width] if plan.path == "stream" else MATMUL_EXACT[name]
    return MATVEC[name, plan.width] if plan.path == "stream" else MATMUL_TILES[name, plan.tile]


# ---------------------------------------------------------------- x


def _multiple(plan):
    return SLOT_MULTIPLE if plan.path == "wgmma" else 1


def _are_groups(plan, experts):
    """Whether a few rows meet a matrix each: their ids serve as groups, in the order in which they come."""
    if plan.width > 1 or len(experts) > ROWS_BY_ID or experts.dtype != np.int32:
        return False
    return experts.flags.c_contiguous


def _sort_on_host(plan, device, parts, experts):
    """Fills order and groups; how many groups there are."""
    counts = np.bincount(experts)
    multiple, width = _multiple(plan), plan.width
    padded = -(-counts // multiple) * multiple
    first_slots = np.cumsum(padded) - padded
    order = np.full(plan.n_slots, -1 if multiple > 1 else 0, np.int32)
    rows = np.argsort(experts, kind="stable")
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    order[np.repeat(first_slots, counts) + within] = rows
    groups_of = -(-counts // width)
    done = np.arange(groups_of.sum()) - np.repeat(np.cumsum(groups_of) - groups_of, groups_of)
    done *= width
    table = np.empty((len(done), GROUP_FIELDS), np.int32)
    table[:, 0] = np.repeat(np.arange(len(counts)), groups_of)
    table[:, 1] = np.repeat(first_slots, groups_of) + done
    table[:, 2] = np.minimum(np.repeat(counts, groups_of) - done, width)
    device.upload(parts["order"], order)
    device.upload(parts["groups"][: table.size], table.reshape(-1))
    return len(table)


def _sort_on_device(plan, device, parts, experts, n_experts, out):
    kernel = SORT_ROWS[experts.dtype.name]
    n = len(out)
    stride = experts.strides[0] // experts.itemsize if n > 1 else 0
    arguments = (
        experts, stride, n, n_experts, parts["order"], plan.n_slots, parts["groups"],
        plan.most_groups, plan.width, _multiple(plan),
        out, _row_stride(out), out.shape[1], FLOAT_TYPES[dtype_name(out.dtype)],
    )  # fmt: skip
    device.launch(kernel, 1, arguments, shared_mem=4 * (n_experts + 2 * SORT_THREADS // 32))


def _prepare(plan, device, x, x_rows, n, block, parts):
    """x as bytes, as padded floats or as an image of bfloat16, its rows in the groups' order."""
    n_x, columns = x.shape
    interleaved = not block.is_float and constants(block).interleaved
    of = _rows_of_x(_row_stride(x), FLOAT_TYPES[dtype_name(x.dtype)], n_x, columns)
    source = (x, x_rows, of, parts.get("order"), parts["x"])
    if plan.path == "wgmma":
        kernel = TILE_ROWS
        n_threads = plan.n_slots * plan.x_columns // 8
        arguments = (*source, n, plan.n_slots)
    elif plan.activations == "float32":
        kernel = GATHER_ROWS[interleaved]
        n_threads = n * plan.x_columns // 4
        arguments = (*source, plan.x_columns, n)
    else:
        kernel = QUANTISE_ROWS[bytes_of_x(block), plan.path == "stream"]
        n_threads = n * -(-columns // 256) * 32
        sums = parts.get("x_sums")
        sums = None if sums is None else sums.view(np.int16)
        arguments = (*source, parts["x_scales"], sums, n)
    device.launch(kernel, -(-n_threads // kernel.block), arguments)


@functools.lru_cache(maxsize=1024)
def _rows_of_x(stride, kind, n_rows, columns):
    """A `ROWS`, not to be written to."""
    of = np.array((stride, kind, n_rows, columns, 0), ROWS)
    of.flags.writeable = False
    return of


def _row_stride(array):
    """In items; 0 where there is one row."""
    return array.strides[0] // array.itemsize if array.shape[0] > 1 else 0


# ---------------------------------------------------------------- weights


def _launch(plan, device, matrices, out, parts, groups, x_type):
    """One launch for one matrix or two alike."""
    t = matrices[0]
    block, data = t.format, t.data
    kernel = _kernel(plan, block.name)
    types = x_type, FLOAT_TYPES[dtype_name(out.dtype)]
    # Of rows at odd addresses warpgroups would copy pieces that are no multiples of 16 apart.
    alignment = max(alignment_of(block), 2) if plan.path == "wgmma" else min(alignment_of(block), 2)
    n_rows, row_lanes = t.shape[-2], plan.row_lanes
    if data.strides[-2] != data.shape[-1]:
        row_lanes = 32  # rows apart from each other
    call = _call(
        tuple([device.address(some.data) % _PIECE for some in matrices]), alignment, data.shape,
        data.strides, _row_stride(out), (t.columns, len(out), *groups, plan.x_columns, plan.n_slots, row_lanes), types,
    )  # fmt: skip
    target = (out, parts.get("order"), parts.get("groups"), call)
    if plan.path == "wgmma":
        more = matrices[1].data if len(matrices) > 1 else None
        arguments = (data, more, parts["x"], *target)
    elif plan.activations == "float32" or plan.path == "single":
        arguments = (data, parts["x"], *target)
    else:
        arguments = (data, parts["x"], parts["x_scales"], parts.get("x_sums"), *target)
    n_blocks, shared = _launch_sizes(
        plan.path, plan.activations, plan.width, plan.tile, block.qtype, kernel.block,
        len(matrices) * -(-n_rows // WGMMA_ROWS), n_rows * row_lanes // 32, t.columns, groups[0],
        device.n_multiprocessors,
    )  # fmt: skip
    device.launch(kernel, n_blocks, arguments, shared_mem=shared)


@functools.lru_cache(maxsize=1024)
def _launch_sizes(
    path, activations, width, tile, qtype, n_threads, row_tiles, n_rows, columns, n_groups,
    n_multiprocessors,
):  # fmt: skip
    """(thread blocks, shared memory of each)."""
    block = FORMATS[qtype]
    exact = activations == "float32"
    if path == "wgmma":
        return min(n_groups * row_tiles, n_multiprocessors), wgmma_shared(block, tile)
    if path == "few":
        return n_groups * n_rows, 0
    if path == "tiles":
        at_once, shared = exact_sizes(block) if exact else tile_sizes(block, tile)
        return n_groups * -(-n_rows // at_once), shared
    at_once, shared = stream_sizes(block, exact, width, n_threads // 32)
    if path == "single":
        shared += -(-columns // CHUNK_WEIGHTS) * CHUNK_WEIGHTS
        shared += 4 * columns // block.block_weights + columns // 8
    # As many as are at work together: their warps go on to further rows.
    a_multiprocessor = 1 if path == "single" or width > 2 else 2
    return min(n_groups * -(-n_rows // at_once), n_multiprocessors * a_multiprocessor), shared


@functools.lru_cache(maxsize=1024)
def _call(misaligned, alignment, data_shape, data_strides, out_stride, sizes, types):
    """A `CALL`, not to be written to. `misaligned`: the addresses of the weights, modulo `_PIECE`."""
    call = np.zeros((), CALL)
    strides = [
        stride if length > 1 else 0
        for length, stride in zip(data_shape[:-1], data_strides[:-1], strict=True)
    ]
    n_packed = 32 // sizes[-1]  # rows that count as one
    call["row_stride"] = strides[-1] * n_packed
    call["expert_stride"] = strides[0] if len(strides) == 2 else 0
    call["n_rows"], call["row_bytes"] = data_shape[-2] // n_packed, data_shape[-1] * n_packed
    call["out_stride"] = out_stride
    for name, size in zip(_SIZES, sizes, strict=True):
        call[name] = size
    call["x_type"], call["out_type"] = types
    call["pieces"] = min(_pieces(address, alignment, data_shape, strides) for address in misaligned)
    call.flags.writeable = False
    return call


def _pieces(address, alignment, shape, strides):
    """Which tiles of rows may be copied in pieces of 16 bytes: see copies_pieces in matmul_call.cuh."""
    if any(number % alignment for number in (address, *strides)):
        return 0
    reach = [(length - 1) * stride for length, stride in zip(shape[:-1], strides, strict=True)]
    low = address + sum(min(r, 0) for r in reach)
    high = address + sum(max(r, 0) for r in reach) + shape[-1]
    if low % _PIECE == 0 and high % _PIECE == 0:
        return 2
    return 1 if abs(strides[-1]) >= _PIECE else 0
