"""Softmax over a panel of scores: one key a line, the query rows side by side in its lanes.

No sum or maximum ever crosses lanes, and the running state of 16 query rows is one vector. A score
of -inf means "left out" and gets weight exactly 0; any other score gets a weight above 0 (scores
more than 87 below the maximum count as 87 below: 1.6e-38). The slow path for NaN in unused cache
slots (`attention_kernel.add_products_carefully`) relies on that difference.
"""

import numpy as np

from . import simd
from .jit import kernel

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(-0.693359375)
_LN2_LOW = np.float32(2.12194440e-4)
_LOWEST = np.float32(-87.0)
_LOWEST_FLOAT = np.float32(np.finfo(np.float32).min)
# Up to this maximum, scale * s less the rounded maximum is at most 1/16 too large, by as much for every
# key of a row: it cancels. Past it the difference of rounded scores is taken, which is never above 0.
_FAR = np.float32(2.0**20)
_MINUS_INF = np.float32(-np.inf)
_ZERO, _HALF, _ONE, _TWO = (np.float32(x) for x in (0, 0.5, 1, 2))
# Cephes expf: exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2) / 2, relative error 8e-8.
_EXP = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)  # fmt: skip
# Cephes tanhf: tanh(x) = x + x^3 p(x^2) on |x| < 0.625.
_TANH = tuple(
    np.float32(c)
    for c in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
)  # fmt: skip
_TANH_SMALL = np.float32(0.625)
# Past this tanh is 1 in float32; it also keeps exp in range.
_TANH_MOST = np.float32(10.0)


@kernel(inline=True)
def exp(x):
    """exp of lanes that are at most about 0; NaN stays NaN, anything below -87 counts as -87."""
    x = simd.maximum(simd.splat(_LOWEST), x)  # in this order: a NaN in x stays
    n = simd.round_even(x * _LOG2_E)
    r = simd.fma(n, simd.splat(_LN2_HIGH), x)
    r = simd.fma(n, simd.splat(_LN2_LOW), r)
    p = simd.splat(_EXP[0])
    p = simd.fma(p, r, simd.splat(_EXP[1]))
    p = simd.fma(p, r, simd.splat(_EXP[2]))
    p = simd.fma(p, r, simd.splat(_EXP[3]))
    p = simd.fma(p, r, simd.splat(_EXP[4]))
    p = simd.fma(p, r, simd.splat(_EXP[5]))
    p = simd.fma(p, r * r, r) + _ONE
    return p * simd.as_floats((simd.to_i32(n) + 127) << 23)


@kernel(inline=True)
def tanh(x):
    """tanh of any lanes; NaN stays NaN."""
    size = simd.absolute(x)
    z = x * x
    p = simd.splat(_TANH[0])
    p = simd.fma(p, z, simd.splat(_TANH[1]))
    p = simd.fma(p, z, simd.splat(_TANH[2]))
    p = simd.fma(p, z, simd.splat(_TANH[3]))
    p = simd.fma(p, z, simd.splat(_TANH[4]))
    near = simd.fma(p * z, x, x)
    # 1 - 2 e / (1 + e) with e = exp(-2 |x|), so that exp's argument is never positive
    e = exp(simd.maximum(simd.splat(-_TANH_MOST), simd.negate(size)) * _TWO)
    far = simd.splat(_ONE) - simd.divide(e * _TWO, e + _ONE)
    far = simd.select(x < _ZERO, simd.negate(far), far)
    # A NaN in x fails the comparison of `<` and must not be lost in `far`.
    return simd.select(size >= _TANH_SMALL, far, near)


@kernel(inline=True)
def score(s, scale, softcap):
    """scale and softcap of 16 products of K and Q."""
    s = s * scale
    if softcap > _ZERO:
        s = tanh(s * (_ONE / softcap)) * softcap
    return s


@kernel(inline=True)
def transform(kq, start, panel, n_keys, scale, softcap, slopes, slope, positions, position, key):
    """Scores = softcap(scale * kq) - slope * |position - key|, in place; `key`: that of line 0."""
    for v in range(0, panel, 16):
        row_slope = simd.load_f32x16(slopes, slope + v)
        row_position = simd.load_i32x16(positions, position + v)
        for j in range(n_keys):
            at = start + j * panel + v
            s = score(simd.load_f32x16(kq, at), scale, softcap)
            distance = simd.absolute(simd.to_f32(row_position - (key + j)))
            simd.store(kq, at, s - row_slope * distance)


@kernel(inline=True)
def add_mask_row(kq, start, panel, n_keys, mask, mask_key):
    """Add one query row's mask values (at address `mask`, `mask_key` apart) to its lane.

    A mask of -inf leaves the key out even where the score is NaN.
    """
    for j in range(n_keys):
        m = simd.read_f32(mask, j * mask_key)
        at = start + j * panel
        if m == _MINUS_INF:
            kq[at] = m
        else:
            kq[at] += m


@kernel(inline=True)
def leave_out(kq, start, panel, n_keys, lows, low, highs, high, key):
    """Set scores of keys outside ``low <= key < high`` of their row to -inf."""
    for v in range(0, panel, 16):
        row_low = simd.load_i32x16(lows, low + v)
        row_high = simd.load_i32x16(highs, high + v)
        out = simd.splat(_MINUS_INF)
        for j in range(n_keys):
            at = start + j * panel + v
            c = simd.splat(key + j)
            s = simd.select(row_low <= c, simd.load_f32x16(kq, at), out)
            simd.store(kq, at, simd.select(row_high > c, s, out))


@kernel(inline=True)
def _panel_maximum(kq, at, panel, n_keys):
    """Per lane the largest of `n_keys` lines (NaN ignored), in four chains."""
    a = simd.splat(_MINUS_INF)
    b, c, d = a, a, a
    whole = n_keys - n_keys % 4
    for j in range(0, whole, 4):
        o = at + j * panel
        a = simd.maximum(simd.load_f32x16(kq, o), a)
        b = simd.maximum(simd.load_f32x16(kq, o + panel), b)
        c = simd.maximum(simd.load_f32x16(kq, o + 2 * panel), c)
        d = simd.maximum(simd.load_f32x16(kq, o + 3 * panel), d)
    for j in range(whole, n_keys):
        a = simd.maximum(simd.load_f32x16(kq, at + j * panel), a)
    return simd.maximum(simd.maximum(a, b), simd.maximum(c, d))


@kernel(inline=True)
def _measure_from(kq, at, panel, n_keys, scale, row_max):
    """Scores to scale * s - row_max, in place, rounded before they are subtracted; only -inf is -inf then."""
    low = simd.splat(_LOWEST_FLOAT)
    for j in range(n_keys):
        o = at + j * panel
        s = simd.load_f32x16(kq, o)
        difference = simd.maximum(low, s * scale - row_max)  # in this order: a NaN stays
        simd.store(kq, o, simd.select(s == _MINUS_INF, s, difference))


@kernel(inline=True)
def _weigh(kq, at, panel, n_keys, scale, row_max):
    """Scores to weights exp(scale * s - row_max), no key left out; returns their sums."""
    multiplier, shift = simd.splat(scale), simd.negate(row_max)
    even, odd = simd.splat(_ZERO), simd.splat(_ZERO)
    whole = n_keys - n_keys % 2
    for j in range(0, whole, 2):
        o = at + j * panel
        p = exp(simd.fma(simd.load_f32x16(kq, o), multiplier, shift))
        q = exp(simd.fma(simd.load_f32x16(kq, o + panel), multiplier, shift))
        simd.store(kq, o, p)
        simd.store(kq, o + panel, q)
        even += p
        odd += q
    if whole < n_keys:
        o = at + whole * panel
        p = exp(simd.fma(simd.load_f32x16(kq, o), multiplier, shift))
        simd.store(kq, o, p)
        even += p
    return even + odd


@kernel(inline=True)
def _weigh_masked(kq, at, panel, n_keys, scale, row_max):
    """As `_weigh`, but a score of -inf gets weight 0."""
    multiplier, shift = simd.splat(scale), simd.negate(row_max)
    row_sum, zero = simd.splat(_ZERO), simd.splat(_ZERO)
    for j in range(n_keys):
        o = at + j * panel
        s = simd.load_f32x16(kq, o)
        p = simd.select(s == _MINUS_INF, zero, exp(simd.fma(s, multiplier, shift)))
        simd.store(kq, o, p)
        row_sum += p
    return row_sum


@kernel(inline=True)
def update(
    kq, start, panel, n_keys, scale, masked, row_max, max_at, row_sum, sum_at, rescale, rescale_at
):
    """One online-softmax step of a panel: scores to weights, in place, and the rows' state.

    `row_max`, `row_sum`: running maximum and sum of each row, updated. `rescale`: what each row's output
    so far must be multiplied by. Returns True if any of it differs from 1.
    """
    any_grown = False
    for v in range(0, panel, 16):
        at = start + v
        old = simd.load_f32x16(row_max, max_at + v)
        new = simd.maximum(_panel_maximum(kq, at, panel, n_keys) * scale, old)
        empty = new == _MINUS_INF  # nothing but left-out keys (or NaN) so far
        reference = simd.select(empty, simd.splat(_ZERO), new)
        multiplier, shift = scale, reference
        if simd.any_set(simd.absolute(reference) > _FAR):
            _measure_from(kq, at, panel, n_keys, scale, reference)
            multiplier, shift = _ONE, simd.splat(_ZERO)
        if masked or simd.any_set(empty):
            added = _weigh_masked(kq, at, panel, n_keys, multiplier, shift)
        else:
            added = _weigh(kq, at, panel, n_keys, multiplier, shift)
        grown = new > old
        scaled_by = simd.select(grown, exp(old - reference), simd.splat(_ONE))
        simd.store(
            row_sum, sum_at + v, simd.fma(simd.load_f32x16(row_sum, sum_at + v), scaled_by, added)
        )
        simd.store(row_max, max_at + v, new)
        simd.store(rescale, rescale_at + v, scaled_by)
        any_grown |= simd.any_set(grown)
    return any_grown
