"""The block formats of GGUF as data: how many weights share a block, and where its bytes lie.

A row of a weight matrix is a sequence of whole blocks; a block holds its scales and the packed
weights. K-quants (Q2_K ... Q6_K) have super-blocks of 256 weights, the others blocks of 32. Plain
floats are formats too, with one weight a block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from .gguf.other_types import OTHER_NUMBERS, described


@dataclass(frozen=True)
class Field:
    """One part of a block: `count` little-endian items of `dtype` from byte `offset` on."""

    name: str
    offset: int
    dtype: str
    count: int = 1

    @property
    def n_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.count


@dataclass(frozen=True, eq=False)
class BlockFormat:
    """One row of the table of formats: there is one object each, equal to nothing else.

    Attributes
    ----------
    name : str
        GGUF's, such as ``"Q2_K"``.
    qtype : gguf.GGMLQuantizationType or int
        An int is a number that the gguf package does not know.
    block_weights : int
        Weights per block: 256 (a super-block), 32 (Q1_0: 128, NVFP4, Q2_0: 64), or 1 for plain floats.
    block_bytes : int
        Bytes per block.
    fields : tuple of Field
        What the block's bytes mean, in their order, without gaps.
    codes : tuple of int
        The least and the greatest integer that stands for a weight; empty for plain floats.
    values : tuple of int
        What the packed codes 0, 1, ... stand for where it is not codes[0], codes[0] + 1, ...; else empty.
    sub_block : int
        Weights that share an integer scale (and a minimum); `block_weights` where there is none.
    scales : tuple of int
        The least and the greatest integer scale; empty where there is none.
    grid : str
        What codes are numbers of, where they stand for several weights: a name for `grids.grid`; else "".
    """

    name: str
    qtype: GGMLQuantizationType | int
    block_weights: int
    block_bytes: int
    fields: tuple
    codes: tuple
    values: tuple
    sub_block: int
    scales: tuple
    grid: str

    @property
    def is_float(self) -> bool:
        """True for F32, F16 and BF16: one weight a block, no scales."""
        return self.block_weights == 1

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_weights

    @property
    def has_minima(self) -> bool:
        """True where a weight is scale * code less a minimum of its sub-block, or plus one of its block."""
        return any(field.name in ("dmin", "m") for field in self.fields)

    @property
    def products(self) -> tuple[int, int]:
        """The least and the greatest integer scale * code; those of `codes` without integer scales."""
        ends = [code * scale for code in self.codes for scale in self.scales or (1,)]
        return min(ends), max(ends)

    @property
    def alignment(self) -> int:
        """What blocks that follow each other are aligned to where the first is: a power of two."""
        return self.block_bytes & -self.block_bytes

    def field(self, name: str) -> Field:
        """The `Field` of that name; KeyError if the format has none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"{self.name} has no field {name!r}; it has {[f.name for f in self.fields]}")

    def offsets(self, *names: str) -> tuple[int, ...]:
        """Byte offsets of fields in a block, in the order of `names`; KeyError as `field`."""
        return tuple(self.field(name).offset for name in names)

    @functools.cached_property
    def block_dtype(self) -> np.dtype:
        """A packed NumPy record of one block, its fields by name (for views and for writing)."""
        return np.dtype(
            {
                "names": [field.name for field in self.fields],
                "formats": [
                    (field.dtype, (field.count,)) if field.count > 1 else field.dtype
                    for field in self.fields
                ],
                "offsets": [field.offset for field in self.fields],
                "itemsize": self.block_bytes,
            }
        )

    def row_blocks(self, columns: int) -> int:
        """Blocks in a row of `columns` weights.

        Raises
        ------
        ValueError
            `columns` is not a whole number of blocks.
        """
        n_blocks, rest = divmod(columns, self.block_weights)
        if rest or columns < 0:
            raise ValueError(
                f"columns: {self.name} packs {self.block_weights} weights in a block, so a row has "
                f"a multiple of {self.block_weights}; got {columns}"
            )
        return n_blocks

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights; ValueError unless they fill whole blocks."""
        return self.row_blocks(columns) * self.block_bytes

    def row_columns(self, n_bytes: int) -> int:
        """Weights in a row of `n_bytes`; ValueError unless they are whole blocks."""
        n_blocks, rest = divmod(n_bytes, self.block_bytes)
        if rest or n_bytes < 0:
            raise ValueError(
                f"row bytes: a block of {self.name} has {self.block_bytes} bytes, so a row has a "
                f"multiple of {self.block_bytes}; got {n_bytes}"
            )
        return n_blocks * self.block_weights


def _format(name, block_weights, *fields, codes=(), values=(), sub_block=None, scales=(), grid=""):
    """A BlockFormat from (field name, dtype, count), which follow each other without gaps."""
    placed, offset = [], 0
    for field_name, dtype, count in fields:
        placed.append(Field(field_name, offset, dtype, count))
        offset += placed[-1].n_bytes
    return BlockFormat(
        name=name,
        qtype=GGMLQuantizationType.__members__.get(name, OTHER_NUMBERS.get(name)),
        block_weights=block_weights,
        block_bytes=offset,
        fields=tuple(placed),
        codes=(min(values), max(values)) if values else codes,
        values=values,
        sub_block=sub_block or block_weights,
        scales=scales,
        grid=grid,
    )


# What the four bits of IQ4 formats stand for: ggml's kvalues_iq4nl.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice what the four bits of FP4 formats stand for (E2M1): ggml's kvalues_mxfp4. Scales are half of what they say.
E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
# Field names as in ggml-common.h. Codes of formats with a grid are twice to eight times what a scale of one makes
# of them: what products take as integers.
FORMATS = {
    row.qtype: row
    for row in (
        _format("F32", 1, ("value", "<f4", 1)),
        _format("F16", 1, ("value", "<f2", 1)),
        _format("BF16", 1, ("value", "<u2", 1)),
        _format("Q8_0", 32, ("d", "<f2", 1), ("qs", "i1", 32), codes=(-128, 127)),
        _format("Q4_0", 32, ("d", "<f2", 1), ("qs", "u1", 16), codes=(-8, 7)),
        _format("IQ4_NL", 32, ("d", "<f2", 1), ("qs", "u1", 16), values=IQ4_VALUES),
        _format(
            "Q2_K",
            256,
            ("scales", "u1", 16),
            ("qs", "u1", 64),
            ("d", "<f2", 1),
            ("dmin", "<f2", 1),
            codes=(0, 3),
            sub_block=16,
            scales=(0, 15),
        ),
        _format(
            "Q3_K",
            256,
            ("hmask", "u1", 32),
            ("qs", "u1", 64),
            ("scales", "u1", 12),
            ("d", "<f2", 1),
            codes=(-4, 3),
            sub_block=16,
            scales=(-32, 31),
        ),
        _format(
            "Q4_K",
            256,
            ("d", "<f2", 1),
            ("dmin", "<f2", 1),
            ("scales", "u1", 12),
            ("qs", "u1", 128),
            codes=(0, 15),
            sub_block=32,
            scales=(0, 63),
        ),
        _format(
            "Q6_K",
            256,
            ("ql", "u1", 128),
            ("qh", "u1", 64),
            ("scales", "i1", 16),
            ("d", "<f2", 1),
            codes=(-32, 31),
            sub_block=16,
            scales=(-128, 127),
        ),
        _format(
            "IQ4_XS",
            256,
            ("d", "<f2", 1),
            ("scales_h", "<u2", 1),
            ("scales_l", "u1", 4),
            ("qs", "u1", 128),
            values=IQ4_VALUES,
            sub_block=32,
            scales=(-32, 31),
        ),
        _format("Q4_1", 32, ("d", "<f2", 1), ("m", "<f2", 1), ("qs", "u1", 16), codes=(0, 15)),
        _format("Q5_0", 32, ("d", "<f2", 1), ("qh", "u1", 4), ("qs", "u1", 16), codes=(-16, 15)),
        _format(
            "Q5_1",
            32,
            ("d", "<f2", 1),
            ("m", "<f2", 1),
            ("qh", "u1", 4),
            ("qs", "u1", 16),
            codes=(0, 31),
        ),
        _format(
            "Q5_K",
            256,
            ("d", "<f2", 1),
            ("dmin", "<f2", 1),
            ("scales", "u1", 12),
            ("qh", "u1", 32),
            ("qs", "u1", 128),
            codes=(0, 31),
            sub_block=32,
            scales=(0, 63),
        ),
        _format("MXFP4", 32, ("e", "u1", 1), ("qs", "u1", 16), values=E2M1_VALUES),
        _format(
            "IQ2_XXS",
            256,
            ("d", "<f2", 1),
            ("qs", "<u2", 32),
            sub_block=32,
            codes=(-43, 43),
            scales=(1, 31),
            grid="IQ2_XXS",
        ),
        _format(
            "IQ2_XS",
            256,
            ("d", "<f2", 1),
            ("qs", "<u2", 32),
            ("scales", "u1", 8),
            sub_block=16,
            codes=(-43, 43),
            scales=(1, 31),
            grid="IQ2_XS",
        ),
        _format(
            "IQ2_S",
            256,
            ("d", "<f2", 1),
            ("qs", "u1", 32),
            ("signs", "u1", 32),
            ("qh", "u1", 8),
            ("scales", "u1", 8),
            sub_block=16,
            codes=(-43, 43),
            scales=(1, 31),
            grid="IQ2_S",
        ),
        _format(
            "IQ3_XXS",
            256,
            ("d", "<f2", 1),
            ("qs", "u1", 64),
            ("scales_and_signs", "<u4", 8),
            sub_block=32,
            codes=(-62, 62),
            scales=(1, 31),
            grid="IQ3_XXS",
        ),
        _format(
            "IQ3_S",
            256,
            ("d", "<f2", 1),
            ("qs", "u1", 64),
            ("qh", "u1", 8),
            ("signs", "u1", 32),
            ("scales", "u1", 4),
            sub_block=32,
            codes=(-15, 15),
            scales=(1, 31),
            grid="IQ3_S",
        ),
        _format(
            "IQ1_S",
            256,
            ("d", "<f2", 1),
            ("qs", "u1", 32),
            ("qh", "<u2", 8),
            sub_block=32,
            codes=(-9, 9),
            scales=(1, 15),
            grid="IQ1_S",
        ),
        _format(
            "IQ1_M",
            256,
            ("qs", "u1", 32),
            ("qh", "u1", 16),
            ("scales", "<u2", 4),
            sub_block=16,
            codes=(-9, 9),
            scales=(1, 15),
            grid="IQ1_S",
        ),
        _format(
            "TQ1_0",
            256,
            ("qs", "u1", 48),
            ("qh", "u1", 4),
            ("d", "<f2", 1),
            codes=(-1, 1),
        ),
        _format(
            "TQ2_0",
            256,
            ("qs", "u1", 64),
            ("d", "<f2", 1),
            codes=(-1, 2),
        ),
        _format(
            "NVFP4",
            64,
            ("d", "u1", 4),
            ("qs", "u1", 32),
            values=E2M1_VALUES,
            sub_block=16,
        ),
        _format(
            "Q1_0",
            128,
            ("d", "<f2", 1),
            ("qs", "u1", 16),
            codes=(-1, 1),
        ),
        _format(
            "Q2_0",
            64,
            ("d", "<f2", 1),
            ("qs", "u1", 16),
            codes=(-1, 2),
        ),
    )
}
# Formats that divide head sizes such as 64, 128, 192 and 576, with scales as fine as half precision: what
# quantised K and V can be.
KV_FORMATS = tuple(
    row for row in FORMATS.values() if row.block_weights == 32 and row.fields[0].dtype == "<f2"
)


def supported_names() -> str:
    """The names of all supported formats, as text for messages: ``"F32, F16, ..."``."""
    return ", ".join(row.name for row in FORMATS.values())


def block_format(qtype: GGMLQuantizationType | str | BlockFormat) -> BlockFormat:
    """The `BlockFormat` of a type.

    Parameters
    ----------
    qtype : gguf.GGMLQuantizationType, str or BlockFormat
        A name may be in lower case.

    Raises
    ------
    ValueError
        GGUF does not know the type, or this library does not support it; lists those it does.
    TypeError
        Not a type nor a name.
    """
    if isinstance(qtype, BlockFormat):
        return qtype
    if isinstance(qtype, str):
        name = qtype.upper()
        known = GGMLQuantizationType.__members__.get(name, OTHER_NUMBERS.get(name))
        if known is None:
            raise ValueError(f"qtype: {qtype!r} is no GGUF type; supported: {supported_names()}")
        qtype = known
    elif not isinstance(qtype, GGMLQuantizationType):
        raise TypeError(
            f"qtype: expected a gguf.GGMLQuantizationType or its name, got {qtype!r}; "
            f"supported: {supported_names()}"
        )
    if qtype not in FORMATS:
        raise ValueError(
            f"qtype: {described(qtype)} is not supported; supported: {supported_names()}"
        )
    return FORMATS[qtype]
