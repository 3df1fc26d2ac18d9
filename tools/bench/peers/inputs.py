"""Inputs of a case, the same in every process that makes them with the same seed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

import quant

# Values are drawn this many at a time and repeated: a prime, so that no two rows are alike.
_POOL = 1_000_003


def make(case: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """{name: array} for a case.

    dequantize, matvec, gemm: ``blocks`` uint8 (rows, row bytes) and, for products, ``x`` float32
    (n, columns). attention: ``q``, ``k`` and, unless it is part of K, ``v``, float32 (heads,
    tokens, size), all exact in float16 too.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case["name"].encode())])
    return _attention(case["sizes"], rng) if case["kind"] == "attention" else _weights(case, rng)


def digest(data: dict[str, np.ndarray]) -> int:
    """A checksum of all arrays, to see that processes have the same."""
    total = 0
    for name in sorted(data):
        total = zlib.crc32(data[name].data.cast("B"), total)
    return total


def _weights(case, rng):
    sizes = case["sizes"]
    data = {"blocks": _blocks(sizes["qtype"], sizes["rows"], sizes["columns"], rng)}
    if "n" in sizes:
        data["x"] = rng.standard_normal((sizes["n"], sizes["columns"]), dtype=np.float32)
    return data


def _blocks(qtype, rows, columns, rng):
    """Blocks of random codes, with scales as a trained model's weights might have."""
    block = quant.block_format(qtype)
    n_blocks = rows * block.row_blocks(columns)
    if block.is_float:
        values = _normal(rng, (rows, columns)).astype(np.float32)
        if qtype == "BF16":
            words = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            words = values.astype(np.float16)
        return words.view(np.uint8)
    data = np.frombuffer(rng.bytes(n_blocks * block.block_bytes), np.uint8).copy()
    records = data.view(block.block_dtype)
    for field in block.fields:
        scales = rng.uniform(0.002, 0.02, n_blocks).astype(np.float16)
        if field.name in ("d", "dmin", "m") and field.dtype == "<f2":
            records[field.name] = scales
        elif field.name == "e":  # powers of two
            records["e"] = rng.integers(118, 123, n_blocks)
        elif qtype == "NVFP4" and field.name == "d":  # of four bits and three: no NaN
            records["d"] &= 0x3F
        elif qtype == "IQ1_M" and field.name == "scales":  # d is in their high nibbles
            nibbles = scales.view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
            records["scales"] = records["scales"] & 0xFFF | nibbles << 12
    return data.reshape(rows, -1)


def _attention(sizes, rng):
    n_head, n_head_kv, d_k = sizes["n_head"], sizes["n_head_kv"], sizes["d_k"]
    data = {
        "q": _normal(rng, (n_head, sizes["n_tokens"], d_k)),
        "k": _normal(rng, (n_head_kv, sizes["n_kv"], d_k)),
    }
    if not sizes["v_in_k"]:
        data["v"] = _normal(rng, (n_head_kv, sizes["n_kv"], sizes["d_v"]))
    return data


def _normal(rng, shape):
    """float32 values that float16 holds exactly."""
    pool = rng.standard_normal(_POOL, dtype=np.float32).astype(np.float16).astype(np.float32)
    return np.resize(pool, shape)


def value_of(data: dict[str, np.ndarray], sizes: dict[str, Any]) -> np.ndarray:
    """V: its own array, or K's first columns."""
    return data["k"][..., : sizes["d_v"]] if sizes["v_in_k"] else data["v"]


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A zeroed array, resident, from a multiple of 4096 bytes on."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    array = memory[start : start + n_bytes].view(dtype).reshape(shape)
    array[...] = 0
    return array


def copies(array: np.ndarray, count: int) -> list[np.ndarray]:
    """The array and `count` - 1 copies of it."""
    return [array, *(array.copy() for _ in range(count - 1))]
