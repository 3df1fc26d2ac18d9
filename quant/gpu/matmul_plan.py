"""What a product on a device takes: its scratch, section by section, from shapes alone."""

import functools
from dataclasses import dataclass

from ..formats import FORMATS

_ALIGNMENT = 256
# Float rows of x end at a multiple of this many values: what two vectors of 16 bytes hold.
_X_MULTIPLE = 8
# Bytes of x for kernels that stream have places for whole chunks: kChunkWeights.
CHUNK_WEIGHTS = 2048
# A row of x of so many values or fewer is made bytes in shared memory, by the kernel that multiplies.
SINGLE_COLUMNS = 16384
# int32 of a row in the table of groups: matrix, first slot, how many.
GROUP_FIELDS = 3


@dataclass(frozen=True)
class MatmulPlan:
    """Sections of one block of scratch: name -> (offset in bytes, dtype, items)."""

    exact: bool
    single: bool  # one row of x, which the kernel takes as it is
    x_columns: int
    sections: dict
    scratch_bytes: int


def uses_floats(block, exact):
    """Whether x stays float32: asked for, or a float format."""
    return bool(exact) or block.is_float


def plan_matmul(n, block, columns, has_experts, exact):
    """The `MatmulPlan` of n rows of x, of `columns` values, and weights of a format."""
    return _plan(n, block.qtype, columns, has_experts, exact)


@functools.lru_cache(maxsize=512)
def _plan(n, qtype, columns, has_experts, exact):
    block = FORMATS[qtype]
    exact = uses_floats(block, exact)
    single = n == 1 and columns <= SINGLE_COLUMNS and not has_experts and not exact
    x_columns = -(-columns // _X_MULTIPLE) * _X_MULTIPLE
    parts = {}
    if exact:
        parts["x"] = "float32", n * x_columns
    elif not single:
        parts["x"] = "uint8", n * (-(-columns // CHUNK_WEIGHTS) * CHUNK_WEIGHTS)
        parts["x_scales"] = "float32", n * columns // block.block_weights
        if block.block_weights == 256:
            parts["x_sums"] = "int32", n * columns // 32
    if has_experts:
        parts["order"] = "int32", n
        parts["groups"] = "int32", n * GROUP_FIELDS  # a group has a row at least
    sections, at = {}, 0
    for name, (dtype, n_items) in parts.items():
        sections[name] = at, dtype, n_items
        n_bytes = n_items * (1 if dtype == "uint8" else 4)
        at += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    return MatmulPlan(exact, single, x_columns, sections, at)
