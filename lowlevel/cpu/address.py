"""Where arrays lie: compiled code takes them by address."""


def address(array):
    """Of a NumPy array's first element; 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]
