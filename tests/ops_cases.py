"""The operations of models in float64, from their formulas: what `lowlevel.ops` is held against on every device."""

import math

import numpy as np

LOWEST = float(np.finfo(np.float32).min)


def wide(x):
    return np.asarray(x).astype(np.float64)


def rms_norm(x, weight, eps):
    x = wide(x)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * wide(weight)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swiglu(gate, up):
    gate = wide(gate)
    return gate * sigmoid(gate) * wide(up)


def geglu(gate, up):
    gate = wide(gate)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + np.tanh(inner)) * wide(up)


def clamped_swiglu(gate, up, alpha=1.702, limit=7.0):
    gate, up = np.minimum(wide(gate), limit), np.clip(wide(up), -limit, limit)
    return gate * sigmoid(alpha * gate) * (up + 1)


def frequencies(
    n_rot, base=10000.0, scale=1.0, factors=None, ext=0.0, attn=1.0, fast=32.0, slow=1.0, n_orig=0
):
    """(radians of each pair a position, magnitude), pair by pair."""
    angles = []
    for i in range(n_rot // 2):
        theta = base ** (-2 * i / n_rot) / (1 if factors is None else factors[i])
        mix = 0.0
        if ext:
            corr = [
                n_rot * math.log(n_orig / (2 * math.pi * b)) / (2 * math.log(base))
                for b in (fast, slow)
            ]
            low, high = max(0, math.floor(corr[0])), min(n_rot - 1, math.ceil(corr[1]))
            mix = ext * (1 - min(1, max(0, (i - low) / max(0.001, high - low))))
        angles.append(theta * scale * (1 - mix) + theta * mix)
    return np.array(angles), attn * (1 + 0.1 * math.log(1 / scale) if ext else 1)


def rope(x, positions, angles, magnitude, pairs, offset):
    x = wide(x).copy()
    n_rot = 2 * len(angles)
    part = x[..., offset : offset + n_rot]
    if pairs == "adjacent":
        a, b = part[..., 0::2], part[..., 1::2]
    else:
        a, b = part[..., : n_rot // 2], part[..., n_rot // 2 :]
    turn = np.outer(wide(positions), angles)
    cos, sin = magnitude * np.cos(turn), magnitude * np.sin(turn)
    a[...], b[...] = a * cos - b * sin, a * sin + b * cos
    return x


def scores_of(logits, gating):
    logits = wide(logits)
    if gating == "softmax":
        e = np.exp(logits - np.fmax.reduce(logits, -1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    if gating == "sigmoid":
        return sigmoid(logits)
    if gating == "sqrt_softplus":
        return np.sqrt(np.logaddexp(0, logits))
    return logits


def selection(scores, n_used, n_group, n_group_used):
    """Ids by falling score, the lowest of equals first; `scores` of one token."""
    scores = np.where(scores > LOWEST, scores, LOWEST)
    if n_group > 1:
        of_groups = np.sort(wide(scores).reshape(n_group, -1), -1)[:, -2:].sum(-1)
        kept = np.argsort(-of_groups, kind="stable")[:n_group_used]
        inside = np.isin(np.arange(len(scores)) // (len(scores) // n_group), kept)
        scores = np.where(inside, scores, -np.inf)
    return np.argsort(-scores, kind="stable")[:n_used]


def routing_weights(logits, ids, gating, normalise, scale):
    """Weights of chosen experts."""
    chosen = np.take_along_axis(scores_of(logits, gating), ids.astype(np.int64), -1)
    if gating == "softmax_selected":
        chosen = scores_of(chosen, "softmax")
    if normalise:
        chosen = chosen / np.maximum(chosen.sum(-1, keepdims=True), 6.103515625e-5)
    return chosen * scale


def scatter_add(out, rows, tokens, weights):
    out = wide(out).copy()
    for i, row in enumerate(wide(rows)):
        out[tokens[i]] += row * (1 if weights is None else wide(weights[i]))
    return out
