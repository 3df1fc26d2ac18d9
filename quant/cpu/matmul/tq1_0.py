"""Products with TQ1_0: 256 weights of -1, 0, 1, five in a byte, and a scale."""

from lowlevel.cpu.jit import kernel

from ...formats import block_format
from . import lanes
from .bits import half_column
from .layouts import layout_of

FORMAT = block_format("TQ1_0")
LAYOUT = layout_of(FORMAT, n_segments=1, shift=1)
QS, QH, D = FORMAT.offsets("qs", "qh", "d")
_BYTES, _DIGITS = 0x00FF00FF, 0x00030003  # of every second byte


@kernel(inline=True)
def _put_digits(put, state, offset, step, n_digits, q):
    """The first digits of four bytes, fractions of 256 in base 3, then the second ones `step` further on, ..."""
    even, odd = q & _BYTES, (q >> 8) & _BYTES
    for digit in range(n_digits):
        even, odd = even * 3, odd * 3
        state = put(
            state, offset + step * digit, ((even >> 8) & _DIGITS) | ((odd >> 8) & _DIGITS) << 8
        )
        even, odd = even & _BYTES, odd & _BYTES
    return state


@kernel(inline=True)
def unpack(to, state, rows, at):
    """qs[48] (five digits a byte; of 32 bytes, then of 16), qh[4] (four digits a byte), d."""
    d = half_column(rows, at + D)
    for part in range(3):
        q = lanes.columns_4(rows, at + QS + 16 * part)
        offset, step = (256 * part, 512) if part < 2 else (2560, 256)
        state = _put_digits(to.put, state, offset, step, 5, q[0])
        state = _put_digits(to.put, state, offset + 64, step, 5, q[1])
        state = _put_digits(to.put, state, offset + 128, step, 5, q[2])
        state = _put_digits(to.put, state, offset + 192, step, 5, q[3])
    state = _put_digits(to.put, state, 3840, 64, 4, lanes.column_i32(rows, at + QH))
    return to.end(state, 0, d)
