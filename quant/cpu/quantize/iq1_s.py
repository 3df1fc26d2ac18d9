"""float32 -> IQ1_S: d (half); of every 8 weights the number of an entry, its high bits with scale and shift of 32."""

import numpy as np

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from .grid_points import grid_points
from .grid_search import ALIKE, SUPER_BLOCK
from .importance import mean_square
from .lanes import write_half
from .scalar import round_even
from .ternary_search import part_32, search_sub_block

FORMAT = block_format("IQ1_S")
_D, _QS, _QH = FORMAT.offsets("d", "qs", "qh")
_SUB_BLOCK, _BLOCK_BYTES = FORMAT.sub_block, FORMAT.block_bytes
_MOST_SCALE = FORMAT.scales[1] // 2
_SMALLEST, _FUDGE = np.float32(1e-12), np.float32(1.125)
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0.0, 0.5, 1.0, 2.0))


def quantize_iq1_s(
    address: int, n_blocks: int, out: np.ndarray, importance: int = 0, row_blocks: int = 1
) -> None:
    """Quantise ``n_blocks * 256`` float32 behind `address` into `out` (uint8, 50 a block)."""
    if not importance:
        importance, row_blocks = ALIKE.ctypes.data, 1
    _quantize(address, n_blocks, out, importance, row_blocks, grid_points("IQ1_S"))


@kernel(allocates=True)
def _quantize(address, n_blocks, out, importance, row_blocks, points):
    n = _SUB_BLOCK
    work = (
        np.empty(n, np.float32), np.empty(n, np.int64), np.empty(n, np.int64),
        np.empty(n + 1, np.float32), np.empty(n + 1, np.float32), np.empty(2, np.float32),
    )  # fmt: skip
    numbers = np.empty(4, np.int64)
    scales, tops = np.empty(8, np.float32), np.empty(8, np.int64)
    for block in range(n_blocks):
        o, largest = block * _BLOCK_BYTES, _ZERO
        out[o : o + _BLOCK_BYTES] = 0
        sigma2 = _TWO * mean_square(address, SUPER_BLOCK * block, SUPER_BLOCK)
        for part in range(8):
            first = SUPER_BLOCK * block + n * part
            at = SUPER_BLOCK * (block % row_blocks) + n * part
            scale, shift = search_sub_block(
                part_32, 1, _SMALLEST, address, first, importance, at, sigma2, work, points, numbers
            )
            top = shift << 15
            for eight in range(4):
                out[o + _QS + 4 * part + eight] = numbers[eight] & 255
                top |= numbers[eight] >> 8 << 3 * eight
            scales[part], tops[part] = scale, top
            largest = max(largest, scale)
        if largest > _ZERO:
            d = largest / np.float32(2 * _MOST_SCALE + 1)
            write_half(out, o + _D, d * _FUDGE)
            inverse = _ONE / d
        for part in range(8):
            top = tops[part]
            if largest > _ZERO:
                multiple = round_even(_HALF * (inverse * scales[part] - _ONE))
                top |= max(0, min(_MOST_SCALE, multiple)) << 12
            out[o + _QH + 2 * part] = top & 255
            out[o + _QH + 2 * part + 1] = top >> 8
