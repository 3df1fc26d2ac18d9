"""How `quant.matmul` lays out a block format: as data, which stand beside its `unpack`.

A block of weights becomes `segments` runs of bytes with one scale a row each; a product with
quantised activations is the sum over segments of

    row scale * column scale * (dot(bytes, x bytes) - shift * sum(x bytes))

Formats with mins (weight = scale * q - min) have more segments after those of the weights: the
mins as weights, and as activations the sums of x over the weights that share a min, written in two
digits: sum = high * min_run + low. So mins cost a few more bytes of k and no code of their own.
Where a block has one minimum, a half (Q4_1, Q5_1), its segment has no bytes: min scale * column scale
* sum(x bytes).
"""

import collections
from dataclasses import dataclass

from lowlevel.cpu import simd

# A tile is `VECTORS` vectors of 16 weight rows by as many columns (rows of x) as one of `WIDTHS`:
# what the registers hold, 32 of 64 bytes with AVX-512, half as many of half the size without.
LANES = 16
VECTORS, WIDTHS = (2, (1, 2, 4, 6)) if simd.LEVEL == "avx512" else (1, (1, 2, 3, 4))
ROWS = VECTORS * LANES
# Bytes of k that one step of the inner loop takes.
STEP = 16
# Weights of k in a panel of bytes (it stays in the first cache) and of floats (in the second);
# both hold whole blocks of any format.
BYTE_CHUNK, FLOAT_CHUNK = 512, 256
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
        Segments of mins that follow; 0 for formats without. One of no steps: the block's only minimum.
    min_run : int
        Weights that share an integer min (16 or 32); 0 for formats without.
    """

    block_weights: int
    block_bytes: int
    n_segments: int
    segment_steps: int
    shift: int = 0
    n_min_segments: int = 0
    min_segment_steps: int = 0
    min_run: int = 0

    @property
    def panel_bytes(self):
        """Bytes of one row in the panel, per block."""
        steps = self.n_segments * self.segment_steps
        return STEP * (steps + self.n_min_segments * self.min_segment_steps)

    @property
    def n_scales(self):
        """Scales of one row, per block."""
        return self.n_segments + self.n_min_segments

    @property
    def fetch_step(self):
        """Bytes to fetch with every vector and every scale of a block of 16 rows: all in all as
        many as the block has."""
        n_vectors = self.panel_bytes // 4 + self.n_scales
        return -(-LANES * self.block_bytes // max(1, n_vectors))


def layout_of(block, n_segments, shift=0, n_min_segments=0, min_segment_steps=0):
    """The `PanelLayout` of a `BlockFormat`: what its row does not say is how its `unpack` cuts it."""
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


# What kernels need to know of a call, all int64. First the format's PanelLayout; then sizes in
# weights (piece: unpacked at a time, chunk: a panel's), rows, bytes; `vectors` is VECTORS, unknown
# to the compiler, which else writes every loop body twice. Of each call: stride and counts; addresses.
Job = collections.namedtuple(
    "Job",
    "block_weights block_bytes n_segments segment_steps shift n_min_segments min_segment_steps "
    "min_run panel_bytes n_scales fetch_step "
    "columns piece chunk n_rows piece_bytes worker_bytes n_panels vectors "
    "row_stride n_tasks n_groups "
    "x_rows out_rows groups matrices x_bytes x_scales x_starts workers",
)
