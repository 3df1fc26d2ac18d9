"""float32 -> blocks: `quantize`.

The weights are cut into chunks that threads take in turn. A chunk is checked, quantised by its
format's kernel (quant/cpu/quantize/), and the scales that came out are checked. A block
depends on its own weights only, so the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import numpy as np

from lowlevel import checks, devices
from lowlevel.cpu.threads import STOP, resolve_n_threads, run_workers

from .formats import FORMATS, block_format
from .tensor import QuantTensor

if TYPE_CHECKING:
    from .tensor import QType

# About half a megabyte of float32: stays in a core's cache between check and quantiser.
_CHUNK_WEIGHTS = 2**17
_LARGEST_FLOAT32 = np.finfo(np.float32).max
# What rounds to bfloat16's largest value.
_LARGEST_BF16 = np.uint32(0x7F7F7FFF).view(np.float32)
# No block format reaches this with scales of half precision; far below, nothing in the searches
# (third powers of the weights) overflows.
_LARGEST_BLOCK = np.float32(2.0**30)
# The largest scale of eight bits, times the largest level.
_LARGEST_NVFP4 = np.float32(448 * 6)
# Types whose errors ggml does not weigh by an importance matrix.
_ALL_COUNT_ALIKE = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "MXFP4",
    "NVFP4",
    "TQ1_0",
    "TQ2_0",
    "Q1_0",
    "Q2_0",
)


def quantize(
    x: np.ndarray,
    qtype: QType,
    *,
    imatrix: np.ndarray | None = None,
    out: np.ndarray | None = None,
    n_threads: int | None = None,
) -> QuantTensor:
    """Weights as blocks of a GGUF type, by ggml's own searches: the same bytes as ggml writes.

    Parameters
    ----------
    x : numpy.ndarray, float32 or float16, (..., rows, columns)
        Any strides and memory layout. Columns fill whole blocks (256 for K, IQ and TQ types, 32 for most
        others, 1 for F32, F16 and BF16). Empty arrays give empty tensors.
    qtype : gguf.GGMLQuantizationType or str
        A supported type; F16 and BF16 are the nearest, ties to even. Of an NVFP4 tensor all of it is in the
        blocks, none in a factor beside it.
    imatrix : numpy.ndarray of float32, (columns,) or (..., columns), optional
        How much an error in each column counts, not negative: (columns,) for all matrices, or with the leading
        axes of `x` but its rows, for each expert. `quant.Imatrix` reads them from llama.cpp's files. Q8_0,
        MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0 and floats take no notice of it, as in ggml. None: K types and
        others as ggml without; of IQ2_XXS, IQ2_XS and IQ1_S, for which ggml demands one, all columns count alike.
    out : numpy.ndarray of uint8, (..., rows, row bytes), optional
        C-contiguous memory for the blocks. None: new memory.
    n_threads : int, optional
        None: every CPU this process may use. The bytes are the same for any number.

    Returns
    -------
    QuantTensor
        Of the shape of `x`.

    Raises
    ------
    ValueError
        An unknown type, columns that do not fill blocks, a weight that is NaN or infinite, or one
        so large that its block's scale overflows half precision (from 65504 for F16 to about
        2.7e8 for Q6_K; NVFP4: 2688; BF16 and F32 have float32's range). Nothing is returned then.
        An `imatrix` of another shape, or one that is not finite or negative somewhere.
    TypeError
        `x` is no float32 or float16 array, or `imatrix` no float32 array.
    """
    block = block_format(qtype)
    _check_array(x, block)
    importance = None if imatrix is None else _checked_imatrix(imatrix, x)
    n_threads = resolve_n_threads(n_threads)
    shape = (*x.shape[:-1], block.row_bytes(x.shape[-1]))
    data = np.empty(shape, np.uint8) if out is None else _checked_out(out, shape, x)
    if data.size:
        if block.name in _ALL_COUNT_ALIKE:
            importance = None
        _quantize_chunks(x, block, data.reshape(-1), n_threads, importance)
    return QuantTensor(data, block, x.shape)


def _checked_imatrix(imatrix, x):
    """The importance of each matrix's columns: float32, (matrices or 1, columns), contiguous."""
    shapes = x.shape[-1:], (*x.shape[:-2], x.shape[-1])
    if not isinstance(imatrix, np.ndarray) or imatrix.dtype != np.float32:
        given = getattr(imatrix, "dtype", type(imatrix).__name__)
        raise TypeError(f"imatrix: expected a NumPy array of float32, got {given}")
    if imatrix.shape not in shapes:
        wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"imatrix: expected shape {wanted} for weights {x.shape}, got {imatrix.shape}"
        )
    if not (np.isfinite(imatrix).all() and (imatrix >= 0).all()):
        raise ValueError("imatrix: must be finite and not negative everywhere")
    return np.ascontiguousarray(imatrix).reshape(-1, x.shape[-1])


def _checked_out(out, shape, x):
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != shape:
        given = getattr(out, "dtype", type(out).__name__), getattr(out, "shape", "")
        raise ValueError(f"out: expected a NumPy array of uint8 of shape {shape}, got {given}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out: must be C-contiguous and writable")
    if np.may_share_memory(out, x):
        raise ValueError("out: overlaps x; give it memory of its own")
    return out


def _check_array(x, block):
    wanted = "expected a float32 or float16 NumPy array (..., rows, columns)"
    checks.check_device(x, "x", devices.get("cpu"), "what quantize takes")
    if x.dtype.newbyteorder("=") not in (np.float32, np.float16):
        raise TypeError(f"x: {wanted}, got {x.dtype}; x.astype(np.float32) would do")
    if x.ndim == 0:
        raise ValueError(f"x: {wanted}, got a single number")
    columns = x.shape[-1]
    if columns % block.block_weights:
        fitting = [row.name for row in FORMATS.values() if columns % row.block_weights == 0]
        raise ValueError(
            f"x: {block.name} packs {block.block_weights} weights in a block, and {columns} "
            f"columns are not a multiple of that; with {columns} columns, these types work: "
            f"{', '.join(fitting)}"
        )


def _quantize_chunks(x, block, out, n_threads, importance=None):
    """Quantise `x` into its blocks' bytes `out` (1-D), in chunks of whole rows or blocks; with `importance` of one matrix."""
    from .cpu.quantize.check import take

    whole_rows = importance is not None or not x.flags.c_contiguous
    unit = x.shape[-1] if whole_rows else block.block_weights
    units = x.reshape(-1, unit)
    unit_bytes = block.row_bytes(unit)
    chunk = max(1, _CHUNK_WEIGHTS // unit)
    n_units = len(units) if importance is None else len(units) // len(importance)  # of a matrix
    chunks_each = -(-n_units // chunk)
    n_chunks = len(units) // n_units * chunks_each
    encode = _encoder(block.name)
    counter = np.zeros(1, np.int64)
    bad_chunks = []

    def worker(_):
        task = take(counter)
        if task >= n_chunks:
            return False
        matrix, part = divmod(task, chunks_each)
        first = matrix * n_units + part * chunk
        last = min(first + chunk, (matrix + 1) * n_units)
        weights = np.require(units[first:last], np.float32, ["C", "A"]).reshape(-1)
        blocks = out[first * unit_bytes : last * unit_bytes]
        if _fits(weights, block):
            encode(weights, blocks, None if importance is None else importance[matrix])
            if _scales_finite(blocks, block):
                return True
        bad_chunks.append((first, last))
        counter[0] = STOP  # chunks before this one are taken: the first bad one is still found
        return False

    run_workers(min(n_threads, n_chunks), worker, counter)
    if bad_chunks:
        first, last = min(bad_chunks)
        bad = out[first * unit_bytes : last * unit_bytes]
        raise _unfit_weight(x.shape, first * unit, units[first:last].reshape(-1), block, bad)


# ---------------------------------------------------------------- weights to bytes


@functools.cache
def _encoder(name):
    """``encode(weights, out, importance)``: float32 (n,) into the bytes of blocks (uint8, 1-D).

    `importance`: None, or one for each column of the whole rows that `weights` then are.
    """
    if name in _FLOAT_ENCODERS:
        return _FLOAT_ENCODERS[name]
    module = importlib.import_module(f".cpu.quantize.{name.lower()}", __package__)
    kernel = getattr(module, f"quantize_{name.lower()}")
    block_weights = block_format(name).block_weights

    def encode(weights, out, importance):
        blocks = weights.ctypes.data, len(weights) // block_weights, out
        if importance is None:
            kernel(*blocks)
        else:
            kernel(*blocks, importance.ctypes.data, len(importance) // block_weights)

    return encode


def _encode_f32(weights, out, importance):
    out.view("<f4")[:] = weights


def _encode_f16(weights, out, importance):
    with np.errstate(over="ignore"):  # found by _scales_finite
        out.view("<f2")[:] = weights


def _encode_bf16(weights, out, importance):
    bits = weights.view(np.uint32)
    odd = bits >> 16 & 1
    out.view("<u2")[:] = bits + (odd + 0x7FFF) >> 16


_FLOAT_ENCODERS = {"F32": _encode_f32, "F16": _encode_f16, "BF16": _encode_bf16}


# ---------------------------------------------------------------- checks


def _largest_weight(block):
    """What a weight may be at most, before the block's scales are looked at."""
    own = {"F32": _LARGEST_FLOAT32, "BF16": _LARGEST_BF16, "NVFP4": _LARGEST_NVFP4}
    return own.get(block.name, _LARGEST_BLOCK)


def _fits(weights, block):
    """Whether all weights are finite and not too large."""
    from .cpu.quantize.check import largest_bits

    bits = largest_bits(weights.ctypes.data, len(weights))
    return bits <= _largest_weight(block).view(np.int32)


def _infinite_scales(blocks, block):
    """For every block, whether one of its half-precision fields is infinite or NaN."""
    high_bytes = [field.offset + 1 for field in block.fields if field.dtype == "<f2"]
    rows = blocks.reshape(-1, block.block_bytes)
    infinite = np.zeros(len(rows), bool)
    if block.name == "IQ1_M":  # the half is spread over the top nibbles of four words
        exponent = rows[:, -1] & 0x70, rows[:, -3] & 0xC0
        infinite |= (exponent[0] == 0x70) & (exponent[1] == 0xC0)
    for at in high_bytes:
        infinite |= rows[:, at] & 0x7C == 0x7C
    return infinite


def _scales_finite(blocks, block):
    return not _infinite_scales(blocks, block).any()


def _unfit_weight(shape, start, weights, block, blocks):
    """The error about a chunk's first weight (or block) that cannot be quantised.

    Parameters
    ----------
    shape, start
        Of the whole array; the number of the chunk's first weight in it.
    weights, blocks
        The chunk, and what its quantiser made of it (meaningful if all weights fit).
    """
    weights = weights.astype(np.float32)
    unfit = ~(np.abs(weights) <= _largest_weight(block))
    if unfit.any():
        at = int(np.flatnonzero(unfit)[0])
    else:
        first = int(np.flatnonzero(_infinite_scales(blocks, block))[0]) * block.block_weights
        at = first + int(np.abs(weights[first : first + block.block_weights]).argmax())
    where = tuple(int(i) for i in np.unravel_index(start + at, shape))
    if not np.isfinite(weights[at]):
        return ValueError(f"x: weights must be finite; x[{_index(where)}] is {weights[at]}")
    larger = "F32" if block.name == "BF16" else "BF16 or F32"
    if block.name not in ("MXFP4", "NVFP4"):
        what = "the value" if block.is_float else "its block's scale or minimum"
        how = "bfloat16" if block.name == "BF16" else "half precision (at most 65504)"
        why = f"{what} is stored in {how}"
    else:
        why = f"weights of at most {_largest_weight(block):g} are taken"
    return ValueError(
        f"x: x[{_index(where)}] = {weights[at]:g} is too large for {block.name}: {why}; "
        f"scale the weights down or use {larger}"
    )


def _index(where):
    return ", ".join(map(str, where))
