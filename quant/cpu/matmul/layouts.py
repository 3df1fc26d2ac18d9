"""How `quant.matmul` lays out a block format: as data, which stand beside its `unpack`.

A block of weights becomes `segments` of bytes with one scale a row each; a product with
quantised activations is the sum over segments of

    row scale * column scale * (dot(bytes, x bytes) - shift * sum(x bytes))

What a segment is depends on how a CPU multiplies bytes (`FORM`).

"dwords" (dwords.py): four products at a time are added to an int32, whatever the bytes. Integer scales are
multiplied into the bytes where those still fit, or else into the row scale: a segment each.
Formats with mins (weight = scale * q - min) have more segments after those of the weights: the
mins as weights, and as activations the sums of x over the weights that share a min, written in two
digits: sum = high * min_run + low. So mins cost a few more bytes of k and no code of their own.
Where a block has one minimum, a half (Q4_1, Q5_1), its segment has no bytes: min scale * column scale
* sum(x bytes).

"pairs" (pairs.py): two products at a time make an int16. Runs of weights that share an integer scale are summed
in int16, then multiplied by it, and all runs of a segment are one int32; mins are words, as are the sums of x that
they meet.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowlevel.cpu import simd

if TYPE_CHECKING:
    from ...formats import BlockFormat


Shape = collections.namedtuple("Shape", "form lanes vectors widths")
# A tile is `vectors` vectors of `lanes` weight rows by as many columns (rows of x) as one of `widths`: what the
# registers hold, 32 of 64 bytes with AVX-512, half as many of half the size with AVX2. Without, LLVM splits vectors.
SHAPES = {
    "avx512": Shape("dwords", 16, 2, (1, 2, 4, 6)),
    "avx2": Shape("pairs", 8, 2, (1, 2, 3, 4)),
    "avx2 vnni": Shape("dwords", 8, 2, (1, 2, 3, 4)),
    "portable": Shape("dwords", 16, 1, (1, 2, 3, 4)),
}
_HALF_VNNI = simd.LEVEL == "avx2" and simd.HAS_VNNI
FORM, LANES, VECTORS, WIDTHS = SHAPES["avx2 vnni" if _HALF_VNNI else simd.LEVEL]
ROWS = VECTORS * LANES
VECTOR = 4 * LANES  # bytes
# Bytes of k that one step of the inner loop takes.
STEP = 16
# Weights of k in a panel of bytes (it stays in the first cache: ROWS times as many bytes) and of floats (in the second);
# both hold whole blocks of any format.
BYTE_CHUNK, FLOAT_CHUNK = 1024 if FORM == "pairs" else 512, 256
# Weights of a float format that are unpacked at a time.
FLOAT_PIECE = 32


@dataclass(frozen=True)
class PanelLayout:
    """One format.

    Attributes
    ----------
    block_weights, block_bytes : int
        Weights a block, and its bytes in the file. One scale of the activations spans a block.
    n_segments, segment_steps : int
        Segments of weights a block, and the steps of 16 weights in each.
    shift : int
        What was added to the integer weights to make them unsigned.
    n_min_segments, min_segment_steps : int
        Dwords: segments of mins that follow; 0 for formats without. One of no steps: the block's only minimum.
    min_run : int
        Weights that share an integer min (16 or 32); 0 for formats without.
    n_runs, run_steps : int
        Pairs: runs of a block, each with its start, and their steps.
    n_factors, n_min_pairs : int
        Pairs: integer scales of a block (0: none), and pairs of integer mins.
    has_min : int
        Pairs: 1 if there is one more float, the minimum or what mins are multiplied by.
    sums : str
        Pairs: what runs are summed in: see pairs.py.
    """

    block_weights: int
    block_bytes: int
    n_segments: int
    segment_steps: int
    shift: int = 0
    n_min_segments: int = 0
    min_segment_steps: int = 0
    min_run: int = 0
    n_runs: int = 0
    run_steps: int = 0
    n_factors: int = 0
    n_min_pairs: int = 0
    has_min: int = 0
    sums: str = ""

    @property
    def panel_bytes(self) -> int:
        """Bytes of one row in the panel, per block."""
        steps = self.n_segments * self.segment_steps
        steps += self.n_min_segments * self.min_segment_steps
        return STEP * steps + 4 * (self.n_factors + self.n_min_pairs)

    @property
    def x_panel_bytes(self) -> int:
        """Bytes of one row of x, per block."""
        return self.panel_bytes - 4 * self.n_factors

    @property
    def n_scales(self) -> int:
        """Scales of one row, per block."""
        return self.n_segments + self.n_min_segments + self.has_min

    @property
    def n_starts(self) -> int:
        """What sums of one row of x start with, per block."""
        return self.n_runs or self.n_scales

    @property
    def word_starts(self) -> int:
        """Pairs: 1 if starts are two words each."""
        return int(self.sums == "words")

    @property
    def fetch_step(self) -> int:
        """Bytes to fetch with every vector and (dwords) every scale of a block: all in all as many as it has."""
        n_vectors = self.panel_bytes // 4 + self.n_scales
        if self.sums:
            n_vectors = self.block_weights // 4
        return -(-LANES * self.block_bytes // max(1, n_vectors))

    @property
    def fetches_seldom(self) -> bool:
        """Pairs: whether every other vector can do one of two steps and miss no cache line."""
        return 2 * self.fetch_step <= 64


def layout_of(
    block: BlockFormat,
    n_segments: int,
    shift: int = 0,
    n_min_segments: int = 0,
    min_segment_steps: int = 0,
    n_factors: int = 0,
    code_shift: int | None = None,
) -> PanelLayout:
    """The `PanelLayout` of a `BlockFormat`: what its row does not say is how its `unpack` cuts it.

    n_segments, shift, n_min_segments, min_segment_steps : of the form "dwords".
    n_factors : integer scales that `unpack` hands over as such.
    code_shift : the shift of codes that are not multiplied by their scales; None: `shift`.
    """
    if FORM == "pairs":
        return _layout_of_pairs(
            block, n_segments, shift if code_shift is None else code_shift, n_factors
        )
    return PanelLayout(
        block_weights=block.block_weights,
        block_bytes=block.block_bytes,
        n_segments=n_segments,
        segment_steps=block.block_weights // n_segments // STEP,
        shift=shift,
        n_min_segments=n_min_segments,
        min_segment_steps=min_segment_steps,
        min_run=block.sub_block if min_segment_steps else 0,
    )


# Most that a byte of x is, and that an int16 holds.
_MOST_X, _MOST = 127, 2**15 - 1


def _layout_of_pairs(block, n_segments, shift, n_factors):
    if n_factors:
        n_segments = 1
    n_runs = n_factors or n_segments
    run = block.block_weights // n_runs
    # Two products must fit an int16 while codes are shifted. Sums of many may wrap around: all that counts is
    # that the last one fits, from which the shift is taken again.
    largest = max(map(abs, block.codes))
    if 2 * _MOST_X * (block.codes[1] + shift) > _MOST:
        sums, shift = "signed", 0
    else:
        sums = "words" if run // 2 * _MOST_X * largest <= _MOST else "dwords"
    integer_mins = block.has_minima and bool(n_factors)
    return PanelLayout(
        block_weights=block.block_weights,
        block_bytes=block.block_bytes,
        n_segments=n_segments,
        segment_steps=block.block_weights // n_segments // STEP,
        shift=shift,
        min_run=block.sub_block if integer_mins else 0,
        n_runs=n_runs,
        run_steps=run // STEP,
        n_factors=n_factors,
        n_min_pairs=block.block_weights // block.sub_block // 2 if integer_mins else 0,
        has_min=int(block.has_minima),
        sums=sums,
    )


# What kernels need to know of a call, all int64. First the format's PanelLayout; then sizes in
# weights (piece: unpacked at a time, chunk: a panel's), rows, bytes; `vectors` is VECTORS, unknown
# to the compiler, which else writes every loop body twice; how many tasks a worker takes at a time. Of each call: stride
# and counts; addresses.
Job = collections.namedtuple(
    "Job",
    "block_weights block_bytes n_segments segment_steps shift n_min_segments min_segment_steps "
    "min_run n_runs run_steps n_factors n_min_pairs has_min "
    "panel_bytes x_panel_bytes n_scales n_starts word_starts fetch_step "
    "columns piece chunk n_rows piece_bytes worker_bytes n_panels vectors stretch "
    "row_stride n_tasks n_groups "
    "x_rows out_rows groups matrices x_bytes x_scales x_starts workers",
)
