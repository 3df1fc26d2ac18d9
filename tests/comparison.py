"""Comparing results with an oracle: first where numbers are not finite, then how far off they are."""

import numpy as np


def assert_close(actual, expected, bound, what="", least=1e-30):
    """Fail unless `actual` equals `expected` up to `bound` times the largest expected value, or `least`.

    NaN and infinities must stand in the same places. The message names the worst place.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    for name, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        differs = test(actual) != test(expected)
        if differs.any():
            place = tuple(int(i) for i in np.argwhere(differs)[0])
            raise AssertionError(
                f"{what}: {name} differs in {int(differs.sum())} places, first {place}: "
                f"{actual[place]} instead of {expected[place]}"
            )
    finite = np.isfinite(expected)
    if not finite.any():
        return
    error = np.where(finite, np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0)), 0)
    scale = max(np.abs(expected[finite]).max(), least)
    worst = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    assert error[worst] <= bound * scale, (
        f"{what}: off by {error[worst] / scale:.3g} of the largest value (bound {bound}) "
        f"at {worst}: {actual[worst]} instead of {expected[worst]}"
    )
