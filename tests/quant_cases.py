"""Random quantised tensors and what the gguf package makes of them."""

import gguf
import numpy as np

from quant import FORMATS, QuantTensor
from quant.gpu.constants import constants

# Zeros, the smallest and largest subnormal and normal numbers, inf, quiet and signalling NaN.
SPECIAL_HALVES = np.array(
    [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF], np.uint16
)
SPECIAL_HALVES = np.concatenate([SPECIAL_HALVES, SPECIAL_HALVES | 0x8000])


_BY_NAME = {block.name: block for block in FORMATS.values()}


def _structure(block):
    """What CUDA kernels of formats have different code by: those of one structure differ in how a unit is unpacked.

    Blocks of more than 32 weights with one scale have nothing but that of their own: sums of runs are as Q2_K's, of several
    blocks at a time as NVFP4's.
    """
    if block.block_weights > 32 and block.sub_block == block.block_weights:
        block = _BY_NAME["Q2_K" if block.block_weights == 256 else "NVFP4"]
    of = constants(block)
    fold = min(of.fold_offset, 1)
    return block.block_weights, of._replace(alignment=min(of.alignment, 2), fold_offset=fold)


_BLOCKS = [block for block in FORMATS.values() if not block.is_float]
# The first format of the table of each structure. On the simulator every kernel of these runs in every way (orders,
# and under all checks), and is compiled for every architecture. Other formats have the same
# kernels but for how they unpack a unit: they run in one order, decoding under the checks too, and are compiled
# for one architecture. All of them in all ways would double the time that tests take.
FIRST_OF_STRUCTURE = tuple(
    block.name
    for block in _BLOCKS
    if next(other for other in _BLOCKS if _structure(other) == _structure(block)) is block
)
ORDERS = ("fifo", "reverse", "random", "lifo")


def is_checked_in_every_way(name):
    """Whether a format's kernels run in every way on the simulator: see `FIRST_OF_STRUCTURE`."""
    return block_format(name).is_float or name in FIRST_OF_STRUCTURE


def orders_of(names):
    """(name, order) for tests by order of threads and blocks."""
    return [
        (name, order)
        for name in names
        for order in (ORDERS if is_checked_in_every_way(name) else ("random",))
    ]


# The simulator's settings of tests under all of its checks. Both modes at once are one compilation, not two, and find what
# each finds (tests/cudasim/test_sim_memory.py).
CHECKED = {"race": True, "ub": True}


def checked_in_every_way(names):
    """Those whose kernels tests run under `CHECKED`."""
    return [name for name in names if is_checked_in_every_way(name)]


def block_format(name):
    return _BY_NAME[name]


def random_tensor(rng, name, shape):
    """A tensor of random bytes: every second float16 scale is subnormal, huge, inf or NaN."""
    block = block_format(name)
    data = rng.integers(0, 256, (*shape[:-1], block.row_bytes(shape[-1])), dtype=np.uint8)
    records = data.view(block.block_dtype)
    for field in block.fields:
        if field.dtype == "<f2" and field.count == 1:
            special = rng.choice(SPECIAL_HALVES, records.shape).view(np.float16)
            use = rng.random(records.shape) < 0.5
            records[field.name] = np.where(use, special, records[field.name])
    return QuantTensor(data, name, shape)


def width(name, n_blocks):
    """Columns of so many blocks; for plain floats of a number that no vector divides."""
    block = block_format(name)
    return n_blocks * block.block_weights if not block.is_float else 37 * n_blocks


def _bits_of(data, bits, n):
    """The numbers of `bits` bits in bytes (..., n * bits / 8), the lowest ones first."""
    numbers = data[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
    return numbers.reshape(*data.shape[:-1], n).astype(np.float32)


# What the gguf package does not decode, by ggml's definition.
_DEFINITIONS = {
    "Q1_0": lambda block: block["d"][..., None] * (2 * _bits_of(block["qs"], 1, 128) - 1),
    "Q2_0": lambda block: block["d"][..., None] * (_bits_of(block["qs"], 2, 64) - 1),
}


def decoded(rows, block):
    """float32 weights of rows of blocks, by the gguf package where it has the type."""
    if block.name in _DEFINITIONS:
        weights = _DEFINITIONS[block.name](rows.view(block.block_dtype))
        return weights.astype(np.float32).reshape(len(rows), -1)
    return gguf.quants.dequantize(rows, block.qtype)


def reference(t, dtype="float32"):
    """The gguf package's weights of a tensor on the host."""
    if t.size == 0:  # which that package does not take
        return np.empty(t.shape, dtype)
    with np.errstate(all="ignore"):
        rows = np.ascontiguousarray(t.data).reshape(-1, t.row_bytes)
        weights = decoded(rows, t.format).reshape(t.shape)
        return weights.astype(dtype)


def assert_same_bits(found, expected):
    """Equal bit for bit, -0 and 0 told apart; NaN where NaN is expected, with any payload."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), is_nan)
    unsigned = f"u{expected.itemsize}"
    found, expected = (
        np.where(is_nan, 0, np.ascontiguousarray(x).view(unsigned)) for x in (found, expected)
    )
    assert np.array_equal(found, expected)
