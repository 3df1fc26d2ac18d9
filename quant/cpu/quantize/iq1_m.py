"""float32 -> IQ1_M: of every 8 weights the number of an entry, its high bits with their shift; scales of 16, d (half) among them."""

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_points import grid_points
from .grid_search import SUPER_BLOCK
from .importance import error_weights, mean_square
from .scalar import round_even
from .ternary_search import add_products, is_down_at, part_16, search_sub_block

FORMAT = block_format("IQ1_M")
_QS, _QH, _SCALES = FORMAT.offsets("qs", "qh", "scales")
_SUB_BLOCK, _BLOCK_BYTES = FORMAT.sub_block, FORMAT.block_bytes
_MOST_SCALE = FORMAT.scales[1] // 2
_SMALLEST, _FUDGE = np.float32(1e-7), np.float32(1.1125)
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0.0, 0.5, 1.0, 2.0))


def quantize_iq1_m(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 56 a block)."""
    _quantize(address, n_blocks, out, importance, row_blocks, grid_points("IQ1_S"))


@kernel(allocates=True)
def _quantize(address, n_blocks, out, importance, row_blocks, points):
    n = _SUB_BLOCK
    weights, sums = np.empty(n, np.float32), np.empty(2, np.float32)
    work = (
        weights, np.empty(n, np.int64), np.empty(n, np.int64),
        np.empty((2, n + 1), np.float32), np.empty((2, n + 1), np.float32), sums,
    )  # fmt: skip
    scales, shifts = np.empty(16, np.float32), np.empty(16, np.int64)
    numbers = np.empty((16, 2), np.int64)
    for block in range(n_blocks):
        o, largest = block * _BLOCK_BYTES, _ZERO
        out[o : o + _BLOCK_BYTES] = 0
        sigma2 = _TWO * mean_square(address, SUPER_BLOCK * block, SUPER_BLOCK)
        for part in range(16):
            first = SUPER_BLOCK * block + n * part
            at = SUPER_BLOCK * (block % row_blocks) + n * part
            scale, shifts[part] = search_sub_block(
                part_16,
                2,
                _SMALLEST,
                address,
                first,
                importance,
                at,
                sigma2,
                work,
                points,
                numbers[part],
            )
            scales[part] = scale
            largest = max(largest, scale)
        for part in range(16):
            out[o + _QS + 2 * part] = numbers[part, 0] & 255
            out[o + _QS + 2 * part + 1] = numbers[part, 1] & 255
            out[o + _QH + part] = numbers[part, 0] >> 8 | numbers[part, 1] >> 8 << 4
        if largest == _ZERO:
            continue
        d = largest / np.float32(2 * _MOST_SCALE + 1)
        inverse = _ONE / d
        packed = 0  # four times 16 bits: four scales of three bits, a nibble of d
        sums[:] = 0
        for part in range(16):
            multiple = round_even(_HALF * (inverse * scales[part] - _ONE))
            multiple = max(0, min(_MOST_SCALE, multiple))
            packed |= multiple << (16 * (part // 4) + 3 * (part % 4))
            shift = shifts[part]
            out[o + _QH + part] |= (shift >> 1) << 3 | (shift & 1) << 7
            first = SUPER_BLOCK * block + n * part
            at = SUPER_BLOCK * (block % row_blocks) + n * part
            error_weights(address, first, importance, at, n, sigma2, _ZERO, weights)
            for eight in range(2):
                is_down = is_down_at(shift, eight, 2, 2)
                add_products(
                    address, first, weights, 8 * eight, numbers[part, eight], is_down,
                    np.float32(2 * multiple + 1), sums, points,
                )  # fmt: skip
        if sums[1] > _ZERO:
            d = sums[0] / sums[1]
        half = simd.f32_to_half(d * _FUDGE)
        for i in range(4):
            packed |= (half >> 4 * i & 15) << (16 * i + 12)
        for i in range(8):
            out[o + _SCALES + i] = packed >> 8 * i & 255
