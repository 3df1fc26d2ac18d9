"""The next token out of logits: the most probable one, or a draw from those that filters leave.

The filters and their order are llama.cpp's: top-k, top-p and min-p look at the probabilities before the
temperature, the draw at those after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lowlevel.checks import real_number, whole_number

__all__ = ["Sampler", "SamplingParams"]

MAX_TOKENS = 2**31 - 1
FIRST_GUESS = 512  # candidates that are put in order at first, where top-p alone cuts


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; by default the most probable one.

    Attributes
    ----------
    temperature : float
        0: the most probable token, whatever the rest says. Else logits are divided by it.
    top_k : int
        Only the `top_k` most probable tokens; 0: all.
    top_p : float
        Of these only the most probable ones that together have at least this probability; 1: all.
    min_p : float
        Of these only the ones at least `min_p` times as probable as the first; 0: all.
    seed : int or None
        The same seed, logits and calls give the same tokens; None: other ones each time.

    Raises
    ------
    TypeError, ValueError
        A value that is no number, or out of its range; the message names it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        real_number(self.temperature, "temperature", least=0.0, dtype="float64")
        whole_number(self.top_k, "top_k", 0, MAX_TOKENS)
        for name in ("top_p", "min_p"):
            if real_number(getattr(self, name), name, least=0.0) > 1.0:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)!r}")
        if self.seed is not None:
            whole_number(self.seed, "seed", 0, 2**64 - 1)


class Sampler:
    """Chooses tokens, one after the other, by `SamplingParams`."""

    def __init__(self, params: SamplingParams | None = None) -> None:
        self.params = SamplingParams() if params is None else params
        if not isinstance(self.params, SamplingParams):
            raise TypeError(f"params: expected SamplingParams, got {type(params).__name__}")
        self._random = np.random.Generator(np.random.PCG64(self.params.seed))

    def sample(self, logits: np.ndarray) -> int:
        """The next token.

        Parameters
        ----------
        logits : numpy.ndarray
            float32 (n_vocab,); -inf for what must not be chosen. Not changed.

        Raises
        ------
        TypeError
            No array of float32.
        ValueError
            Another shape, a NaN or +inf, or -inf everywhere.
        """
        _check(logits)
        if self.params.temperature == 0.0:
            return int(logits.argmax())
        tokens = candidates(logits, self.params)
        weights = _weights(logits[tokens], self.params.temperature)
        sums = np.cumsum(weights)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        if place == len(sums):  # the product was rounded up to the sum
            place = int(np.flatnonzero(weights)[-1])
        return int(tokens[place])


def candidates(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The tokens that the filters leave, in the order of their ids; of equal logits, lower ids stay first."""
    tokens = np.arange(len(logits))
    if 0 < params.top_k < len(tokens):
        tokens = _largest(logits, params.top_k)
    if params.top_p < 1.0:
        tokens = _most_probable(logits, tokens, params.top_p)
    if params.min_p > 0.0:
        kept = logits[tokens].astype(np.float64)
        tokens = tokens[kept >= kept.max() + math.log(params.min_p)]
    return np.sort(tokens)


def _check(logits):
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
        what = getattr(logits, "dtype", type(logits).__name__)
        raise TypeError(f"logits: expected an array of float32, got {what}")
    if logits.ndim != 1 or not len(logits):
        raise ValueError(f"logits: expected the shape (n_vocab,), got {logits.shape}")
    largest = logits.max()  # a NaN if there is one
    if not np.isfinite(largest):
        what = "-inf alone: no token is possible" if largest == -np.inf else f"{largest}"
        raise ValueError(f"logits: expected finite numbers or -inf, got {what}")


def _weights(logits, temperature=1.0):
    """Probabilities but for their sum, float64."""
    logits = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: the others get 0
        return np.exp((logits - logits.max()) / temperature)


def _largest(logits, count):
    """The tokens of the `count` largest logits, of equal ones those with the lowest ids, in the order of ids."""
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _most_probable(logits, tokens, top_p):
    """The fewest of `tokens` that together have the probability `top_p`, at least one."""
    weights = _weights(logits[tokens])
    wanted = top_p * weights.sum()
    count = min(FIRST_GUESS, len(tokens))
    while True:  # all are put in order only where it takes so many
        first = _largest(weights, count)
        first = first[np.argsort(-weights[first], kind="stable")]
        sums = np.cumsum(weights[first])
        if count == len(tokens) or sums[-1] >= wanted:
            return tokens[first[: int(np.searchsorted(sums, wanted)) + 1]]
        count = min(16 * count, len(tokens))
