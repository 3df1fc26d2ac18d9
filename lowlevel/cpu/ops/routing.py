"""Choosing experts on the CPU: a token's scores lie on the stack of the thread that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowlevel.cpu import simd, softmax
from lowlevel.cpu.jit import kernel

from . import frame
from .gated import sigmoid

if TYPE_CHECKING:
    from lowlevel.checks import Rows
    from lowlevel.devices import Device


# The same as in lowlevel/ops/routing.py, as constants of the kernels: experts, and groups behind them.
_N_SCORES, _N_GROUPS, _N_USED, _GROUP_FLOATS = 1024, 32, 32, 64
_ZERO, _ONE, _TWO = (np.float32(x) for x in (0, 1, 2))
_TAKEN = np.float32(-np.inf)
_LOWEST = np.float32(np.finfo(np.float32).min)
_FAR_BELOW = np.float32(-87.0)  # `softmax.exp` goes no further down
_LEAST_SUM = np.float32(2.0**-14)
# log(1 + e) = 2 atanh(z), z = e / (2 + e) up to 1/3: the series' next term is below 1e-8.
_ATANH = tuple(np.float32(1 / n) for n in (13, 11, 9, 7, 5, 3))


@kernel(inline=True)
def _softmax_weight(logits, top, total):
    """exp(logits - top) / total; 0 for -inf."""
    e = softmax.exp(logits - simd.splat(top))
    e = simd.select(logits == _TAKEN, simd.splat(_ZERO), e)
    return simd.divide(e, simd.splat(total))


@kernel(inline=True)
def _sigmoid_weight(logits, top, total):
    return sigmoid(logits)


@kernel(inline=True)
def _softplus_weight(logits, top, total):
    """sqrt(log(1 + exp(logits))), 0 below -87."""
    e = softmax.exp(simd.negate(simd.absolute(logits)))
    e = simd.select(logits < _FAR_BELOW, simd.splat(_ZERO), e)
    z = simd.divide(e, e + _TWO)
    square = z * z
    p = simd.splat(_ATANH[0])
    p = simd.fma(p, square, simd.splat(_ATANH[1]))
    p = simd.fma(p, square, simd.splat(_ATANH[2]))
    p = simd.fma(p, square, simd.splat(_ATANH[3]))
    p = simd.fma(p, square, simd.splat(_ATANH[4]))
    p = simd.fma(p, square, simd.splat(_ATANH[5]))
    log = simd.fma(p * square, z, z) * _TWO
    return simd.square_root(simd.maximum(simd.splat(_ZERO), logits) + log)


@kernel(inline=True)
def _logit(logits, top, total):
    return logits


@kernel(inline=True)
def _maximum_and_total(logits, n):
    """(largest of n floats behind an address, sum of exp(logit - largest)), NaN ignored in the first."""
    top = simd.splat(_TAKEN)
    for i in range(0, n, 16):
        top = simd.maximum(simd.read_first_f32(logits, i, min(16, n - i), _TAKEN), top)
    highest = simd.max_lanes(top)
    total = simd.splat(_ZERO)
    for i in range(0, n, 16):
        v = simd.read_first_f32(logits, i, min(16, n - i), _TAKEN)
        e = softmax.exp(v - simd.splat(highest))
        total += simd.select(v == _TAKEN, simd.splat(_ZERO), e)
    return highest, simd.sum_lanes(total)


@kernel(inline=True)
def _take_best(scores, n):
    """The index of the largest of n floats (a multiple of 16) behind an address, the first of equals; it is taken then."""
    top = simd.splat(_TAKEN)
    for i in range(0, n, 16):
        top = simd.maximum(simd.read_f32x16(scores, i), top)
    highest = simd.max_lanes(top)
    best = 0
    while simd.read_f32(scores, best) != highest:
        best += 1
    simd.write_f32(scores, best, _TAKEN)
    return best


@kernel(inline=True)
def _keep_groups(scores, groups, n_expert, n_group, n_group_used):
    """Take all experts but those of the best groups; `groups`: room for 64 floats, the second half for marks."""
    size = n_expert // n_group
    for group in range(_N_GROUPS):
        simd.write_f32(groups, group, _TAKEN)
        simd.write_f32(groups, _N_GROUPS + group, _ZERO)
    for group in range(n_group):
        first, second = _TAKEN, _TAKEN
        for i in range(group * size, (group + 1) * size):
            score = simd.read_f32(scores, i)
            if score > first:
                first, second = score, first
            elif score > second:
                second = score
        simd.write_f32(groups, group, max(np.float32(first + second), _LOWEST))
    for _ in range(n_group_used):
        simd.write_f32(groups, _N_GROUPS + _take_best(groups, _N_GROUPS), _ONE)
    for group in range(n_group):
        if simd.read_f32(groups, _N_GROUPS + group) == _ZERO:
            for i in range(group * size, (group + 1) * size):
                simd.write_f32(scores, i, _TAKEN)


def _route_kernel(score, weigh, over_selected):
    """`score`, `weigh`: vectors of logits to scores and to weights; `over_selected`: the latter of the selected ones."""

    @kernel(inline=True)
    def fill_scores(scores, logits, bias, by_logits, n_expert, top, total):
        for i in range(0, n_expert, 16):
            n = min(16, n_expert - i)
            v = simd.read_first_f32(logits, i, n, _ZERO)
            if not by_logits:
                v = score(v, top, total)
            if bias != 0:
                v = v + simd.read_first_f32(bias, i, n, _ZERO)
            v = simd.select(v > _LOWEST, v, simd.splat(_LOWEST))  # -inf and NaN, too
            inside = simd.splat(n) > simd.iota()
            simd.write_f32x16(scores, i, simd.select(inside, v, simd.splat(_TAKEN)))

    @kernel(inline=True)
    def write_weights(chosen, target, n_used, top, total, normalise, scale):
        """`chosen`: the logits of the selected experts, 32 floats."""
        if over_selected:
            top, total = _maximum_and_total(chosen, n_used)
        for i in range(0, n_used, 16):
            v = simd.read_first_f32(chosen, i, min(16, n_used - i), _ZERO)
            simd.write_f32x16(chosen, i, weigh(v, top, total))
        total = _ZERO
        for i in range(n_used):
            total = np.float32(total + simd.read_f32(chosen, i))
        if total < _LEAST_SUM:
            total = _LEAST_SUM
        for i in range(n_used):
            weight = simd.read_f32(chosen, i)
            if normalise:
                weight = np.float32(weight / total)
            simd.write_f32(target, i, np.float32(weight * scale))

    @kernel(inline=True)
    def route_rows(integers, floats, first, stop):
        bias, n_expert, n_used = integers[6], integers[7], integers[8]
        n_group, n_group_used, normalise = integers[9], integers[10], integers[11]
        by_logits = bias == 0 and n_group == 1
        scores, groups, chosen = (
            simd.stack_floats(_N_SCORES),
            simd.stack_floats(_GROUP_FLOATS),
            simd.stack_floats(_N_USED),
        )
        n_scores = (n_expert + 15) // 16 * 16
        for row in range(first, stop):
            logits = integers[0] + row * integers[1]
            ids, weights = integers[2] + row * integers[3], integers[4] + row * integers[5]
            top, total = _maximum_and_total(logits, n_expert)
            fill_scores(scores, logits, bias, by_logits, n_expert, top, total)
            if n_group > 1:
                _keep_groups(scores, groups, n_expert, n_group, n_group_used)
            for i in range(n_used):
                best = _take_best(scores, n_scores)
                simd.write_at(ids + 4 * i, np.int32(best))
                simd.write_f32(chosen, i, simd.read_f32(logits, best))
            write_weights(chosen, weights, n_used, top, total, normalise != 0, floats[0])

    return frame.rows_kernel(route_rows)


_KERNELS = {
    "softmax": _route_kernel(_softmax_weight, _softmax_weight, False),
    "sigmoid": _route_kernel(_sigmoid_weight, _sigmoid_weight, False),
    "softmax_selected": _route_kernel(_logit, _softmax_weight, True),
    "sqrt_softplus": _route_kernel(_softplus_weight, _softplus_weight, False),
}


def route(
    device: Device,
    logits: Rows,
    bias: np.ndarray | None,
    ids: Rows,
    weights: Rows,
    gating: str,
    n_group: int,
    n_group_used: int,
    normalise: bool,
    scale: float,
    n_threads: int | None,
) -> None:
    """See `lowlevel.ops.top_k_routing`; logits, ids and weights as `lowlevel.checks.Rows`."""
    _, n_tokens, n_expert = logits.shape
    n_used = ids.shape[2]
    integers = (
        frame.address(logits.array), logits.row, frame.address(ids.array), ids.row,
        frame.address(weights.array), weights.row, frame.address(bias),
        n_expert, n_used, n_group, n_group_used, normalise,
    )  # fmt: skip
    # Work on scores rather than memory: some ten times what reading them takes.
    row_bytes = 4 * n_expert * (4 + n_used)
    frame.run(_KERNELS[gating], integers, (scale,), n_tokens, row_bytes, n_threads)
