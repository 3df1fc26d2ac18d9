"""Products with quantised weights for tests: random operands, and what must come out."""

import numpy as np
from quant_cases import block_format, decoded

from quant import QuantTensor

# Over the product of the norms of the two vectors: float32's own error.
EXACT_ERROR = 1e-6


def random_tensor(rng, name, *shape):
    """Every bit pattern of the integers, scales around 0.01."""
    block = block_format(name)
    n_blocks = int(np.prod(shape[:-1])) * block.row_blocks(shape[-1])
    records = np.frombuffer(rng.bytes(n_blocks * block.block_bytes), block.block_dtype).copy()
    for field in block.fields:
        if block.is_float:
            values = rng.standard_normal(n_blocks).astype(np.float32)
            if name == "BF16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            records[field.name] = values
        elif field.dtype == "<f2":
            records[field.name] = 0.01 * rng.standard_normal(n_blocks)
        elif field.name == "e":  # a power of two
            records[field.name] = rng.integers(116, 124, n_blocks)
    if name == "IQ1_M":  # a scale in four nibbles
        d = (0.01 * rng.standard_normal(n_blocks)).astype(np.float16).view(np.uint16)
        nibbles = d[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
        records["scales"] = records["scales"] & 0xFFF | nibbles << 12
    return QuantTensor(records.view(np.uint8).reshape(-1), name, shape)


EXTREME_BYTES = (0x00, 0xFF, 0x80, 0x7F)


def extreme_tensor(name, byte, n_rows, n_blocks):
    """Of one byte all over, scales of 1."""
    block = block_format(name)
    records = np.full(n_rows * n_blocks * block.block_bytes, byte, np.uint8).view(block.block_dtype)
    for field in block.fields:
        if field.dtype == "<f2":
            records[field.name] = 1.0
        elif field.name == "e":
            records[field.name] = 127
    if name == "IQ1_M":  # a scale of 1 in four nibbles
        records["scales"] = records["scales"] & 0xFFF | np.uint16([0, 0, 0xC000, 0x3000])
    shape = (n_rows, n_blocks * block.block_weights)
    return QuantTensor(records.view(np.uint8).reshape(-1), name, shape)


def random_x(rng, n, columns):
    return rng.standard_normal((n, columns)).astype(np.float32)


def weights_of(t):
    """float64 weights of a tensor on the host."""
    flat = np.ascontiguousarray(t.data).reshape(-1, t.row_bytes)
    return decoded(flat, t.format).reshape(t.shape).astype(np.float64)


def rounded(x, block_weights):
    """x as its signed bytes stand for it, float64: as ggml rounds activations."""
    blocks = x.reshape(len(x), x.shape[1] // block_weights, block_weights)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    scale = largest / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    steps = np.rint(blocks * inverse).astype(np.float64)
    return (steps * scale).reshape(x.shape)


def to_bfloat16(values):
    """float64 of the nearest bfloat16, ties to even; of finite values."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


def expected_product(x, t, activations):
    """The product in float64, of x rounded to bytes, or x and t to bfloat16, unless float32 or True."""
    if activations == "bfloat16" and not t.format.is_float:
        return to_bfloat16(x) @ to_bfloat16(weights_of(t)).T
    if activations in (True, "float32") or t.format.is_float:
        x = x.astype(np.float64)
    else:
        x = rounded(x, t.format.block_weights)
    return x @ weights_of(t).T


def check_product(found, x, t, activations, what=""):
    """Fail unless `found` is x @ t.T within float32's error."""
    expected = expected_product(x, t, activations)
    assert found.shape == expected.shape and found.dtype == np.float32
    norms = np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    norms = norms * np.linalg.norm(weights_of(t), axis=1)
    error = np.max(np.abs(found - expected) / np.maximum(norms, 1e-30), initial=0.0)
    assert error <= EXACT_ERROR, f"{what}: error {error} over the norms"
