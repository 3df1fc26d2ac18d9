"""One row of floats to another, of any two of float32, float16 and bfloat16."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowlevel.cpu import float_reads, simd
from lowlevel.cpu.jit import kernel

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@kernel(inline=True)
def _read_one_f32(address):
    return simd.read_f32(address, 0)


@kernel(inline=True)
def _same(value):
    return value


# 16 side by side, a single one
_READS = {
    "float32": (float_reads.read_f32, _read_one_f32),
    "float16": (float_reads.read_f16, float_reads.read_one_f16),
    "bfloat16": (float_reads.read_bf16, float_reads.read_one_bf16),
}
_NARROW = {"float32": _same, "float16": simd.f32_to_half, "bfloat16": simd.f32_to_bfloat}


@functools.cache
def row_converter(source: str, target: str) -> Any:
    """``convert(source, target, n, factor)``, inlined: writes n values times factor from an address to another.

    A factor of 1 changes nothing.
    """
    read, read_one = _READS[source]
    narrow = _NARROW[target]
    from_bytes, to_bytes = ITEM_BYTES[source], ITEM_BYTES[target]

    @kernel(inline=True)
    def convert(source, target, n, factor):
        whole = n - n % 16
        for i in range(0, whole, 16):
            v = read(source + from_bytes * i)
            simd.write_at(target + to_bytes * i, narrow(v * factor))
        for i in range(whole, n):
            v = read_one(source + from_bytes * i)
            simd.write_at(target + to_bytes * i, narrow(np.float32(v * factor)))

    return convert
