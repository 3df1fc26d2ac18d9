"""Softmax over whole rows of K*Q, in place, for method "steps": keys lie side by side in a row."""

import numpy as np

from . import simd, softmax
from .jit import kernel

_ZERO, _ONE = np.float32(0), np.float32(1)
_MINUS_INF = np.float32(-np.inf)


@kernel(inline=True)
def _finish_scores(kq, row, low, high, position, scale, softcap, slope):
    """Scores low .. high of a row in place; returns their maximum."""
    top = simd.splat(_MINUS_INF)
    whole = low + (high - low) // 16 * 16
    for c in range(low, whole, 16):
        s = softmax.score(simd.load_f32x16(kq, row + c), scale, softcap)
        distance = simd.absolute(simd.to_f32(simd.iota() + (c - position)))
        s = s - distance * slope
        simd.store(kq, row + c, s)
        top = simd.maximum(s, top)
    largest = simd.max_lanes(top)
    for c in range(whole, high):
        s = simd.extract(softmax.score(simd.splat(kq[row + c]), scale, softcap), 0)
        s -= slope * np.float32(abs(c - position))
        kq[row + c] = s
        if s > largest:
            largest = s
    return largest


@kernel(inline=True)
def _add_mask(kq, row, low, high, mask, mask_key):
    """Add a mask row (address, stride in floats); returns the new maximum."""
    largest = _MINUS_INF
    for c in range(low, high):
        m = simd.read_f32(mask, c * mask_key)
        s = m if m == _MINUS_INF else kq[row + c] + m
        kq[row + c] = s
        if s > largest:
            largest = s
    return largest


@kernel(inline=True)
def weigh(kq, row, low, high, top):
    """Scores to exp(s - top), -inf to 0; returns the sum."""
    total, zero, shift = simd.splat(_ZERO), simd.splat(_ZERO), simd.splat(top)
    whole = low + (high - low) // 16 * 16
    for c in range(low, whole, 16):
        s = simd.load_f32x16(kq, row + c)
        p = simd.select(s == _MINUS_INF, zero, softmax.exp(s - shift))
        simd.store(kq, row + c, p)
        total += p
    result = simd.sum_lanes(total)
    for c in range(whole, high):
        s = kq[row + c]
        p = _ZERO
        if s != _MINUS_INF:
            p = simd.extract(softmax.exp(simd.splat(s - top)), 0)
        kq[row + c] = p
        result += p
    return result


@kernel(inline=True)
def _multiply(kq, row, n, factor):
    whole = n // 16 * 16
    for c in range(0, whole, 16):
        simd.store(kq, row + c, simd.load_f32x16(kq, row + c) * factor)
    for c in range(whole, n):
        kq[row + c] *= factor


@kernel
def softmax_rows(kq, call, head, n_heads, counter):
    """Rows of ``kq`` (n_heads, n_tokens, n_kv), in place; heads head .. head + n_heads; tasks are rows."""
    n_rows = n_heads * call.n_tokens
    while True:
        task = simd.take_task(counter, 1)
        if task >= n_rows:
            return False
        h, token = head + task // call.n_tokens, task % call.n_tokens
        row = task * call.n_kv
        position = call.n_kv - call.n_tokens + token
        high = min(call.n_kv, max(position + 1, 0)) if call.causal else call.n_kv
        low = min(max(position - call.window + 1, 0), high)
        for c in range(0, low):
            kq[row + c] = _ZERO
        for c in range(high, call.n_kv):
            kq[row + c] = _ZERO
        slope = simd.read_f32(call.slopes, h) if call.slopes else _ZERO
        top = _finish_scores(kq, row, low, high, position, call.scale, call.softcap, slope)
        if call.mask:
            mask_row = call.mask + 4 * (h * call.mask_head + token * call.mask_token)
            top = _add_mask(kq, row, low, high, mask_row, call.mask_key)
        sink = simd.read_f32(call.sinks, h) if call.sinks else _MINUS_INF
        top = max(top, sink)
        reference = _ZERO if top == _MINUS_INF else top
        total = weigh(kq, row, low, high, reference)
        if sink != _MINUS_INF:
            total += np.exp(sink - reference)
        if total != _ZERO:
            _multiply(kq, row + low, high - low, _ONE / total)
        if call.lse:
            lse = _MINUS_INF if total == _ZERO else reference + np.log(total)
            simd.write_f32(call.lse, h * call.lse_head + token, lse)


@kernel
def products_carefully(weights, v, out):
    """``out = weights @ v``, where a weight of 0 adds nothing even if v holds NaN or inf."""
    for i in range(weights.shape[0]):
        for j in range(v.shape[1]):
            out[i, j] = _ZERO
        for c in range(weights.shape[1]):
            p = weights[i, c]
            if p != _ZERO:
                for j in range(v.shape[1]):
                    out[i, j] += p * v[c, j]
