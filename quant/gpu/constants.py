"""What a block format is to CUDA kernels: constants from its row in formats.py, for them and for who launches them.

Kernels get them as text: ``#include "constants/q2_k.cuh"`` is a header of no file, which `header` makes.
"""

import functools
from typing import NamedTuple

from ..formats import BlockFormat
from ..grids import grid

# Weights of a larger block that a lane takes at a time: matmul_formats.cuh's kLaneWeights.
UNIT_WEIGHTS = 64
# Weights at a time of a block of more than 32 that has no scales but its own.
_PIECE_WEIGHTS = 16
_WIDEST = 16  # bytes of a load


class Constants(NamedTuple):
    """Numbers of one block format.

    Attributes
    ----------
    alignment : int
        What its blocks are aligned to where nobody has shifted them, up to 16.
    units, runs, run : int
        Units of a block: what a lane takes at a time. Runs of a unit, weights of a run: those with one scale,
        or where the block has one scale pieces of it.
    fold_offset : int
        What products of weight and integer scale are lowered by to be signed bytes; -1 where they do not fit
        into bytes, where scales are no integers, and for blocks of one run.
    minima : bool
        Whether weight = scale * code - minimum.
    sums : bool
        Whether products need sums of the bytes of x.
    interleaved : bool
        Whether the 32 values of x that meet 16 bytes of nibbles come in their order: 0, 16, 1, 17, ... What is
        looked up in a table stays where its nibble was.
    grid : bool
        Whether codes are numbers of entries of a table.
    few_from : int
        With so many rows of x or more, kernels that stream have the registers for half the rows of weights only.
    """

    alignment: int
    units: int
    runs: int
    run: int
    fold_offset: int
    minima: bool
    sums: bool
    interleaved: bool
    grid: bool
    few_from: int

    @property
    def run_factors(self) -> int:
        """Factors of 256 weights that tiles keep beside the weights; 0 where products are folded into them."""
        return 256 // self.run if self.runs > 1 and self.fold_offset < 0 else 0


def _has_fractions(block):
    """Whether sub-blocks have scales that are no integers."""
    return not block.scales and block.sub_block < block.block_weights


def _fold_offset(block):
    lowest, highest = block.products
    if block.block_weights == 32 or _has_fractions(block) or highest - lowest > 255:
        return -1
    return 0 if highest < 128 else lowest + 128


def _few_from(block):
    if _has_fractions(block):
        return 4
    is_large = block.block_weights > 32 and not block.scales
    return 8 if _fold_offset(block) > 0 or block.grid or is_large else 16


@functools.cache
def constants(block: BlockFormat) -> Constants:
    """The `Constants` of a `BlockFormat` with blocks."""
    units = max(1, block.block_weights // UNIT_WEIGHTS)
    run = block.sub_block if block.sub_block <= 32 else _PIECE_WEIGHTS
    return Constants(
        alignment=min(block.alignment, _WIDEST),
        units=units,
        runs=block.block_weights // units // run,
        run=run,
        fold_offset=_fold_offset(block),
        minima=block.has_minima,
        sums=block.has_minima or block.block_weights == 256,
        interleaved=bool(block.values) and run == 32,
        grid=bool(block.grid),
        few_from=_few_from(block),
    )


def _words(values):
    """Signed bytes, four a word, the first one lowest."""
    data = bytes(value & 255 for value in values)
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def header(block: BlockFormat) -> str:
    """The text of a header: a struct of the format's name in namespace `constants`: `Constants`, offsets of fields, values.

    Of a format with a grid also ``grid(i)``, word i of its entries.
    """
    of = constants(block)
    numbers = {
        "BlockWeights": block.block_weights,
        "BlockBytes": block.block_bytes,
        "Alignment": of.alignment,
        "Units": of.units,
        "Runs": of.runs,
        "Run": of.run,
        "FoldOffset": of.fold_offset,
        "FewFrom": of.few_from,
    }
    flags = {"Minima": of.minima, "Sums": of.sums, "Interleaved": of.interleaved, "Grid": of.grid}
    offsets = {
        "".join(part.capitalize() for part in field.name.split("_")): field.offset
        for field in block.fields
    }
    values = {f"Values{i}": f"{word:#010x}u" for i, word in enumerate(_words(block.values))}
    lines = [
        *(f"static constexpr int k{name} = {value};" for name, value in numbers.items()),
        *(
            f"static constexpr bool k{name} = {str(value).lower()};"
            for name, value in flags.items()
        ),
        *(
            f"static constexpr int k{name} = {value};  // byte offset"
            for name, value in offsets.items()
        ),
        *(f"static constexpr unsigned k{name} = {value};" for name, value in values.items()),
    ]
    tables = ""
    if block.grid:
        lines.append(
            f"static __device__ __forceinline__ unsigned grid(int word) {{ return {block.name}_GRID[word]; }}"
        )
        tables = f"__device__ const unsigned {block.name}_GRID[] = {{\n{_grid_words(block)}}};\n"
    body = "\n".join(f"  {line}" for line in lines)
    struct = f"struct {block.name} {{\n{body}\n}};\n"
    return f"#pragma once\nnamespace constants {{\n{tables}{struct}}}\n"


def _grid_words(block):
    """A grid's entries as words, two of eight bytes or one of four: lines of eight."""
    words = [f"{word:#010x}u," for word in grid(block.grid).view("<u4").reshape(-1)]
    return "".join("  " + " ".join(words[i : i + 8]) + "\n" for i in range(0, len(words), 8))
