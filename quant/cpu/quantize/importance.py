"""How much errors of weights count by an importance matrix: a number for each column, as activations were large there.

ggml weighs an error by importance * sqrt(variance + x**2), the variance that of a super-block, of a block or of a row.
"""

import math

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel

from .lanes import LANES

# What a search with an importance matrix tries: `search_scale_and_minimum`'s first, step_size, n_steps.
FIRST, STEP_SIZE, N_STEPS = -0.9, 0.05, 36


@kernel(inline=True)
def mean_square(address, first, n_weights):
    """The sum of squares over how many they are, in float32."""
    total = np.float32(0.0)
    for i in range(n_weights):
        x = simd.read_f32(address, first + i)
        total += x * x
    return total / np.float32(n_weights)


@kernel(inline=True)
def error_weights(address, first, importance, at, n_weights, variance, mean_share, weights):
    """What errors of the weights from number `first` on count; at: their place in a row's importance.

    Without importance (0): mean_share * variance + x**2.
    """
    for i in range(n_weights):
        x = simd.read_f32(address, first + i)
        if importance != 0:
            weights[i] = simd.read_f32(importance, at + i) * math.sqrt(variance + x * x)
        elif mean_share != np.float32(0.0):
            weights[i] = mean_share * variance + x * x
        else:
            weights[i] = x * x


@kernel(inline=True)
def read_importance(lanes, importance, block, n_here, row_blocks, n_weights, per_block):
    """The importance of sub-blocks side by side, as `lanes.read_lanes` lays weights; 1 in the lanes of missing blocks.

    `n_here` blocks of `per_block` sub-blocks of `n_weights`, from block `block` on, of rows of `row_blocks`.
    """
    for lane in range(LANES):
        part, sub_block = lane // per_block, lane % per_block
        first = ((block + part) % row_blocks * per_block + sub_block) * n_weights
        for i in range(n_weights):
            if part < n_here:
                lanes[LANES * i + lane] = simd.read_f32(importance, first + i)
            else:
                lanes[LANES * i + lane] = np.float32(1.0)


@kernel(inline=True)
def weigh(x, weights, variances, n_weights):
    """`weights`, an importance in lanes, times sqrt(variance + x**2): `variances` (float32) of each lane."""
    variance = simd.load_f32x16(variances, 0)
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        importance = simd.load_f32x16(weights, LANES * i)
        simd.store(weights, LANES * i, importance * simd.square_root(variance + v * v))


@kernel(inline=True)
def squares(x, weights, n_weights):
    """Without importance: x**2."""
    for i in range(n_weights):
        v = simd.load_f32x16(x, LANES * i)
        simd.store(weights, LANES * i, v * v)


@kernel(inline=True)
def lane_sums(weights, n_weights, sums):
    """The sum of each lane."""
    total = simd.splat(np.float32(0.0))
    for i in range(n_weights):
        total += simd.load_f32x16(weights, LANES * i)
    simd.store(sums, 0, total)
