"""Axes of strided arrays that are walked together, with as few of them as will do."""


def join_axes(shape, *strides):
    """Drop axes of length 1 and join those that follow each other without a gap in every array.

    Parameters
    ----------
    shape : sequence of int
        None of them 0.
    *strides : sequences of int
        One for each array, in any unit.

    Returns
    -------
    list of tuple
        (length, stride, stride, ...), slowest axis first; empty if there is a single element.
    """
    joined = []
    for length, *steps in zip(shape, *strides, strict=True):
        if length == 1:
            continue
        if joined and all(
            outer == inner * length for outer, inner in zip(joined[-1][1:], steps, strict=True)
        ):
            joined[-1] = (joined[-1][0] * length, *steps)
        else:
            joined.append((length, *steps))
    return joined
