"""Products on a device that runs CUDA kernels: prepares x, chooses kernels and launches them.

A few rows of x stream against the weights (matvec), more of them meet tiles; both take all experts of
a call in one launch, by a table of groups: rows of x, sorted by expert, that meet one matrix.
"""

import functools

import numpy as np

from ..formats import FORMATS
from .constants import constants
from .instances import (
    EXACT_STREAM_COLUMNS,
    GATHER_ROWS,
    MATMUL_EXACT,
    MATMUL_TILES,
    MATVEC,
    MATVEC_EXACT,
    MATVEC_SINGLE,
    QUANTISE_ROWS,
    STREAM_COLUMNS,
    TILES,
    Tile,
)
from .matmul_plan import CHUNK_WEIGHTS, GROUP_FIELDS

# matmul_call.cuh's MatmulCall.
CALL = np.dtype(
    [(name, "<i8") for name in "expert_stride out_stride".split()]
    + [(name, "<i4") for name in "row_stride row_bytes n_rows columns n_slots n_groups".split()]
    + [(name, "<i4") for name in "x_columns pieces".split()]
)
assert CALL.itemsize == 48
EXACT_COLUMNS = 32  # kExactColumns
_EXACT_ROWS = 32  # kExactRows
_FLOAT_UNIT_BYTES = 16
_DEPTH = 256  # kDepth
_PIECE = 16
_STAGES = 2  # kStages
# Rows of weights in one launch: they are counted in 32 bits.
MAX_ROWS = 2**30


def run(plan, device, x, t, out, order, used_experts, counts, scratch):
    """Fill `out`, in the order of the device's other work; everything is checked, see quant.matmul.

    Parameters
    ----------
    plan : MatmulPlan
    x, out : array of float32, (n, columns) and (n, rows)
    t : QuantTensor, (rows, columns) or (experts, rows, columns)
    order : numpy.ndarray or None
        Rows of x sorted by expert.
    used_experts, counts : sequence of int
        Experts with rows, and how many; [0] and [n] for a plain matrix.
    scratch : array of uint8
        At least plan.scratch_bytes.
    """
    parts = {
        name: scratch[at : at + n_items * np.dtype(dtype).itemsize].view(dtype)
        for name, (at, dtype, n_items) in plan.sections.items()
    }
    kernel, n_columns = choose_kernel(plan, device, t.format, counts)
    groups, n_groups = None, -(-x.shape[0] // n_columns)
    if order is not None:
        device.upload(parts["order"], order.astype(np.int32))
        table = group_table(used_experts, counts, n_columns)
        n_groups = len(table)
        groups = parts["groups"][: table.size]
        device.upload(groups, table.reshape(-1))
    if plan.single:
        parts["x"] = x
    else:
        _prepare(plan, device, x, t.format, parts, kernel.name.startswith("matvec"))
    # A row's distance from the next has 32 bits too.
    max_rows = MAX_ROWS if abs(t.data.strides[-2]) < 2**31 else 1
    if t.shape[-2] <= max_rows:
        _launch(plan, device, kernel, n_columns, t, out, parts, groups, n_groups)
        return
    for first in range(0, t.shape[-2], max_rows):
        rows = slice(first, first + max_rows)
        _launch(
            plan, device, kernel, n_columns, t[..., rows, :], out[:, rows], parts, groups, n_groups
        )


def choose_kernel(plan, device, block, counts):
    """(Kernel, rows of x in a group at most): by the largest number of rows that a matrix meets."""
    if plan.single:
        return MATVEC_SINGLE[block.name], 1
    most = int(max(counts))
    if plan.exact:
        for n_columns in EXACT_STREAM_COLUMNS:
            if most <= n_columns:
                return MATVEC_EXACT[block.name, n_columns], n_columns
        return MATMUL_EXACT[block.name], EXACT_COLUMNS
    for n_columns in STREAM_COLUMNS:
        if most <= n_columns:
            return MATVEC[block.name, n_columns], n_columns
    fitting = [tile for tile in TILES if tile_sizes(block, tile)[1] <= device.max_shared_bytes]
    tile = next((tile for tile in fitting if most <= tile.columns), fitting[-1])
    return MATMUL_TILES[block.name, tile], tile.columns


def group_table(used_experts, counts, n_columns):
    """(matrix, first slot, number of slots) of every group, int32."""
    rows, first = [], 0
    for expert, count in zip(used_experts, counts, strict=True):
        for start in range(0, count, n_columns):
            rows.append((expert, first + start, min(n_columns, count - start)))
        first += count
    return np.array(rows, np.int32).reshape(-1, GROUP_FIELDS)


def _prepare(plan, device, x, block, parts, streamed):
    """x as bytes or as padded floats, its rows in the groups' order."""
    n, columns = x.shape
    interleaved = not block.is_float and constants(block).interleaved
    source = (x, _row_stride(x), parts.get("order"))
    if plan.exact:
        kernel = GATHER_ROWS[interleaved]
        n_threads = n * plan.x_columns // 4
        arguments = (*source, parts["x"], columns, plan.x_columns, n)
    else:
        kernel = QUANTISE_ROWS[block.block_weights, interleaved, streamed]
        n_threads = n * -(-columns // 256) * 32
        sums = parts.get("x_sums")
        sums = None if sums is None else sums.view(np.int16)
        arguments = (*source, parts["x"], parts["x_scales"], sums, columns, n)
    device.launch(kernel, -(-n_threads // kernel.block), arguments)


def _row_stride(array):
    """In items; 0 where there is one row."""
    return array.strides[0] // array.itemsize if array.shape[0] > 1 else 0


def _launch(plan, device, kernel, n_columns, t, out, parts, groups, n_groups):
    block, data = t.format, t.data
    call = _call(
        device.address(data) % _PIECE, data.shape, data.strides, _row_stride(out),
        (t.columns, len(out), n_groups, plan.x_columns),
    )  # fmt: skip
    target = (out, parts.get("order"), groups, call)
    if plan.exact or plan.single:
        arguments = (data, parts["x"], *target)
    else:
        arguments = (data, parts["x"], parts["x_scales"], parts.get("x_sums"), *target)
    n_blocks, shared = _launch_sizes(
        block.qtype, plan.exact, plan.single, kernel.name.startswith("matvec"), kernel.block,
        n_columns, t.shape[-2], t.columns, n_groups, device.n_multiprocessors,
    )  # fmt: skip
    device.launch(kernel, n_blocks, arguments, shared_mem=shared)


@functools.lru_cache(maxsize=1024)
def _launch_sizes(
    qtype,
    exact,
    single,
    streams,
    n_threads,
    n_columns,
    n_rows,
    columns,
    n_groups,
    n_multiprocessors,
):
    """(thread blocks, shared memory of each)."""
    block = FORMATS[qtype]
    if not streams:
        tile = Tile(n_threads, n_columns)
        at_once, shared = exact_sizes(block) if exact else tile_sizes(block, tile)
        return n_groups * -(-n_rows // at_once), shared
    at_once, shared = _stream_sizes(block, exact, n_columns, n_threads // 32)
    if single:
        shared += -(-columns // CHUNK_WEIGHTS) * CHUNK_WEIGHTS
        shared += 4 * columns // block.block_weights + columns // 8
    # As many as are at work together: their warps go on to further rows.
    a_multiprocessor = 1 if single or n_columns > 2 else 2
    return min(n_groups * -(-n_rows // at_once), n_multiprocessors * a_multiprocessor), shared


@functools.lru_cache(maxsize=1024)
def _call(misaligned, data_shape, data_strides, out_stride, sizes):
    """A `CALL`, not to be written to. `misaligned`: the address of the weights, modulo `_PIECE`."""
    call = np.zeros((), CALL)
    strides = [
        stride if length > 1 else 0
        for length, stride in zip(data_shape[:-1], data_strides[:-1], strict=True)
    ]
    call["row_stride"] = strides[-1]
    call["expert_stride"] = strides[0] if len(strides) == 2 else 0
    call["n_rows"], call["row_bytes"] = data_shape[-2:]
    call["out_stride"] = out_stride
    call["columns"], call["n_slots"], call["n_groups"], call["x_columns"] = sizes
    call["pieces"] = _pieces(misaligned, data_shape, strides)
    call.flags.writeable = False
    return call


def _pieces(address, shape, strides):
    """Which tiles of rows may be copied in pieces of 16 bytes: see copies_pieces in matmul_call.cuh."""
    if any(number % 2 for number in (address, *strides)):
        return 0
    reach = [(length - 1) * stride for length, stride in zip(shape[:-1], strides, strict=True)]
    low = address + sum(min(r, 0) for r in reach)
    high = address + sum(max(r, 0) for r in reach) + shape[-1]
    if low % _PIECE == 0 and high % _PIECE == 0:
        return 2
    return 1 if abs(strides[-1]) >= _PIECE else 0


def _unit(block):
    """(weights, bytes) of a block, and its units; of floats, 16 bytes are one."""
    if block.is_float:
        return _FLOAT_UNIT_BYTES // block.block_bytes, _FLOAT_UNIT_BYTES, 1
    return block.block_weights, block.block_bytes, constants(block).units


def _stream_sizes(block, exact, n_columns, n_warps):
    """(rows of weights that a warp takes at once, shared memory of a thread block): see Stream, ByteSums."""
    _, n_bytes, units = _unit(block)
    chunk = 32 // units * n_bytes
    if exact:
        at_once = 2 if n_columns == 1 else 1
    else:
        chunk *= 2 if units == 1 else 1  # a lane takes two blocks
        few = chunk > 1500 or (n_columns == 8 and constants(block).fold_offset > 0)
        at_once = (2 if n_columns > 2 else 1) * (1 if few and n_columns != 2 else 2)
    return at_once, n_warps * _STAGES * at_once * (chunk + 16)


def exact_sizes(block):
    """(rows of weights of a thread block, its shared memory): see ExactTile."""
    n_weights, n_bytes, _ = _unit(block)
    depth = 256 if n_weights == 256 else 64
    raw = 16 * ((depth // n_weights * n_bytes + 30) // 16)
    return _EXACT_ROWS, 4 * (_EXACT_ROWS + EXACT_COLUMNS) * (depth + 4) + _EXACT_ROWS * raw


def tile_sizes(block, tile):
    """(rows of weights of a thread block, its shared memory): see Tile in matmul_tiles.cuh."""
    n_weights, n_bytes, _ = _unit(block)
    rows, columns, n_blocks = tile.threads // 4, tile.columns, _DEPTH // n_weights
    raw = 16 * ((n_blocks * n_bytes + 29) // 16)
    shared = 2 * rows * raw + (2 * columns + rows) * (_DEPTH + 16) + 4 * n_blocks * (rows + columns)
    # A factor for each run of a super-block, minima, sums of x.
    shared += 4 * rows * constants(block).run_factors
    if constants(block).minima:
        shared += (4 + 16) * rows + 36 * columns
    if constants(block).fold_offset > 0:
        shared += 4 * columns
    return rows, shared
