"""Bytes of a model by what they are for, on one device or on all."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a model, by what they are for: what is planned is what is taken.

    Attributes
    ----------
    weights : int
        Of the file, as far as they are read.
    weights_copied : int
        Of weights in the pool: 0 on the CPU, where the file is mapped.
    weights_made : int
        Of weights that the file has in another form.
    kv_cache : int
    activations : int
        All buffers of a pass, over each other where they never live at once.
    scratch : int
        Of attention (within amb), and of products, at most.
    workspace : int
        Activations and scratch together: an operation's scratch lies over the buffers that do not live meanwhile.
    inputs : int
        Positions of a u-batch, and what is the same in every pass.
    host : int
        Of the host: a pool of pinned memory for what is on its way to or from devices, and what ranks hand one another
        by way of the host. 0 on the CPU.
    """

    weights: int = 0
    weights_copied: int = 0
    weights_made: int = 0
    kv_cache: int = 0
    activations: int = 0
    scratch: int = 0
    workspace: int = 0
    inputs: int = 0
    host: int = 0

    @property
    def compute(self) -> int:
        """What passes work in: the workspace and the inputs."""
        return self.workspace + self.inputs

    @property
    def pool(self) -> int:
        """What is taken from the pool in all."""
        return self.weights_copied + self.weights_made + self.kv_cache + self.compute

    def to_dict(self) -> dict[str, int]:
        """The same as plain values."""
        return {**dataclasses.asdict(self), "compute": self.compute, "pool": self.pool}

    def __add__(self, other: Memory) -> Memory:
        """Of two parts of a model together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Memory(*(a + b for a, b in pairs))


def some_sizes(most: int) -> list[int]:
    """Numbers of tokens that plans look at: 1, the powers of two, and `most`."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
