"""Rotary position embedding, with YaRN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel import arrays, checks, devices

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from lowlevel.arrays import Array

PAIRS = ("adjacent", "halves")


@dataclass(frozen=True, eq=False)
class RopeFrequencies:
    """How far RoPE turns each pair a position, for one kind of layer: made once, used by every call.

    Attributes
    ----------
    turns : array of uint64, (n_rot / 2,)
        Fractions of a whole turn a position, in units of 2**-64 turns. Their product with a position, in 64 bits, is
        the pair's angle, to 2**-33 turns at any position: whole turns drop out.
    magnitude : float
        What turned pairs are multiplied with (YaRN's attention factor); 1 without.
    """

    turns: Any
    magnitude: float = 1.0

    @property
    def n_rot(self) -> int:
        """Dimensions that are turned."""
        return 2 * len(self.turns)

    def to(self, device: str) -> RopeFrequencies:
        """These frequencies on a device: "cpu", "cuda:N" or "cudasim:N"; themselves if they are there already.

        Who wants them in a pool makes ``RopeFrequencies(turns, magnitude)`` of a copy there.
        """
        turns = arrays.asarray(self.turns, device, "turns")
        return self if turns is self.turns else RopeFrequencies(turns, self.magnitude)


def rope_frequencies(
    n_rot: int,
    *,
    freq_base: float = 10000.0,
    freq_scale: float = 1.0,
    freq_factors: ArrayLike | None = None,
    ext_factor: float = 0.0,
    attn_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    n_ctx_orig: int = 0,
) -> RopeFrequencies:
    """The angles of RoPE and YaRN: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023), sections 3.2 and 3.4.

    Pair i turns by ``theta = freq_base**(-2 i / n_rot) / freq_factors[i]`` a position. Interpolation makes that
    ``freq_scale * theta``; YaRN mixes both: ``theta * mix + freq_scale * theta * (1 - mix)`` where ``mix = ext_factor *
    (1 - clamp((i - low) / max(0.001, high - low), 0, 1))``, low = floor(corr(beta_fast)) and high = ceil(corr(beta_slow))
    within 0 and n_rot - 1, ``corr(b) = n_rot ln(n_ctx_orig / (2 pi b)) / (2 ln freq_base)``. With YaRN the magnitude is
    ``attn_factor * (1 + 0.1 ln(1 / freq_scale))``, else attn_factor: as in ggml.

    Parameters
    ----------
    n_rot : int
        Dimensions that are turned: even, at least 2.
    freq_base : float
        Above 1.
    freq_scale : float
        Above 0: one over the factor by which the context is stretched.
    freq_factors : sequence of float, (n_rot / 2,), optional
        Divisors of each pair's angle (Llama 3's rope_freqs, Phi-3's long factors).
    ext_factor : float
        How much of YaRN's extrapolation: 0 none (YaRN off), 1 all.
    attn_factor, beta_fast, beta_slow : float
    n_ctx_orig : int
        Context that the model was trained for, in tokens; needed where ext_factor is not 0.

    Raises
    ------
    TypeError, ValueError
    """
    n_rot = checks.whole_number(n_rot, "n_rot", 2, 1 << 20)
    if n_rot % 2:
        raise ValueError(f"n_rot: expected an even number, got {n_rot}")
    freq_base = checks.real_number(freq_base, "freq_base")
    freq_scale = checks.real_number(freq_scale, "freq_scale")
    ext_factor = checks.real_number(ext_factor, "ext_factor")
    magnitude = checks.real_number(attn_factor, "attn_factor")
    if freq_base <= 1:
        raise ValueError(f"freq_base: expected more than 1, got {freq_base}")
    if freq_scale <= 0:
        raise ValueError(f"freq_scale: expected more than 0, got {freq_scale}")
    pair = np.arange(n_rot // 2)
    theta = freq_base ** (-2.0 * pair / n_rot) / _checked_factors(freq_factors, n_rot // 2)
    interpolated = freq_scale * theta
    if ext_factor:
        low, high = _corrections(n_rot, freq_base, beta_fast, beta_slow, n_ctx_orig)
        mix = ext_factor * (1 - np.clip((pair - low) / max(0.001, high - low), 0, 1))
        interpolated = interpolated * (1 - mix) + theta * mix
        magnitude *= 1 + 0.1 * math.log(1 / freq_scale)
    fraction = np.mod(interpolated / (2 * math.pi), 1.0)
    turns = [round(float(part) * 2**64) % 2**64 for part in fraction]
    return RopeFrequencies(np.array(turns, np.uint64), magnitude)


def _checked_factors(factors, n_pairs):
    if factors is None:
        return np.ones(n_pairs)
    factors = np.asarray(arrays.asnumpy(factors, "freq_factors"), np.float64)
    if factors.shape != (n_pairs,):
        raise ValueError(f"freq_factors: expected shape ({n_pairs},), got {factors.shape}")
    if not (np.isfinite(factors) & (factors != 0)).all():
        raise ValueError("freq_factors: expected finite numbers other than 0")
    return factors


def _corrections(n_rot, freq_base, beta_fast, beta_slow, n_ctx_orig):
    """The pairs between which YaRN goes over from extrapolation to interpolation."""
    n_ctx_orig = checks.whole_number(n_ctx_orig, "n_ctx_orig", 1, 2**31 - 1)
    ends = []
    for name, beta in (("beta_fast", beta_fast), ("beta_slow", beta_slow)):
        beta = checks.real_number(beta, name)
        if beta <= 0:
            raise ValueError(f"{name}: expected more than 0, got {beta}")
        turns = n_ctx_orig / (2 * math.pi * beta)
        ends.append(n_rot * math.log(turns) / (2 * math.log(freq_base)))
    return max(0, math.floor(ends[0])), min(n_rot - 1, math.ceil(ends[1]))


def rope(
    x: Array,
    positions: Array,
    frequencies: RopeFrequencies,
    *,
    pairs: str = "adjacent",
    offset: int = 0,
    n_threads: int | None = None,
) -> Array:
    """Turn pairs of dimensions by their token's position, in place.

    A pair (a, b) becomes (a cos t - b sin t, a sin t + b cos t) times the magnitude, t the position times the pair's frequency:
    Su et al., "RoFormer" (2021), equation 34.

    Parameters
    ----------
    x : array, (n_head, n_tokens, d)
        Activations, say a view of rows of heads; any strides that put no two elements in one place.
    positions : array of int32, (n_tokens,)
        On the device of x; from 0 (negative ones turn back).
    frequencies : RopeFrequencies
        Of `rope_frequencies`, on the device of x: see its `to`.
    pairs : {"adjacent", "halves"}
        Pair i: dimensions 2 i and 2 i + 1 (ggml's NORM), or i and i + n_rot / 2 (ggml's NEOX).
    offset : int
        The first dimension that is turned; those before it, and those from offset + n_rot on, stay.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `x`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.

    Notes
    -----
    Within 5e-7 of the pair's length times the magnitude in float32, at any position. The same bits on every device in float32, subnormal results aside.
    """
    device = devices.of_array(x, "x")
    checks.check_array(x, "x", device, device.activations)
    if x.ndim != 3:
        raise ValueError(f"x: expected (n_head, n_tokens, d), got shape {tuple(x.shape)}")
    checks.check_alignment(x, "x", device)
    checks.check_vector(positions, "positions", device, ("int32",), x.shape[1])
    if not isinstance(frequencies, RopeFrequencies):
        raise TypeError(
            f"frequencies: expected what lowlevel.ops.rope_frequencies gives, got {type(frequencies).__name__}"
        )
    checks.check_array(frequencies.turns, "frequencies", device, ("uint64",))
    checks.choice(pairs, "pairs", PAIRS)
    if frequencies.n_rot > x.shape[2]:
        raise ValueError(
            f"frequencies: {frequencies.n_rot} dimensions are to be turned, x has {x.shape[2]}"
        )
    offset = checks.whole_number(offset, "offset", 0, x.shape[2] - frequencies.n_rot)
    checks.check_writable(x, "x", device)
    checks.check_apart(x, "x", device, {"positions": positions, "frequencies": frequencies.turns})
    run = devices.kernels("lowlevel", device, "ops.rope").rope
    run(device, x, positions, frequencies, pairs == "halves", offset, n_threads)
    return x
