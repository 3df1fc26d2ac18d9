"""Where the kernels of these tests are."""

import pathlib

KERNELS = pathlib.Path(__file__).parent / "kernels"
ORDERS = ("fifo", "reverse", "random", "lifo")


def line_of(file, text):
    """Number of the only line of a kernel file that holds `text`."""
    lines = (KERNELS / file).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    assert len(found) == 1, (file, text, found)
    return found[0]
