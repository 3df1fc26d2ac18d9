"""A model file that need not exist: the header of what `make_gguf` would write, as readers of headers take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..gguf.header import TensorInfo
from .geometry import AttentionGeometry
from .synthetic.make_gguf import plan_tensors
from .synthetic.metadata import model_sizes

if TYPE_CHECKING:
    from ..tensor import QType
    from .geometry import ModelGeometry


class PlannedFile:
    """Metadata and tensors of a geometry, without data: what `ModelConfig.from_file` asks a `ModelFile` for.

    Parameters
    ----------
    geometry : ModelGeometry
    qtype : str
        The format of the bulk, as for `make_gguf`.

    Attributes
    ----------
    metadata : dict
        Sizes only: no tokenizer.
    paths : tuple of str
        The geometry's name, for messages.
    """

    def __init__(self, geometry: ModelGeometry, qtype: QType = "Q8_0") -> None:
        architecture = geometry.architecture
        self.paths = (geometry.name,)
        self.metadata: dict[str, Any] = {"general.architecture": architecture}
        for key, _, value in model_sizes(geometry):
            # as a file gives it back: float32
            kept = float(np.float32(value)) if isinstance(value, float) else value
            self.metadata[f"{architecture}.{key}"] = kept
        self._infos = {
            tensor.spec.name: TensorInfo(
                tensor.spec.name,
                tensor.block.qtype,
                tuple(tensor.spec.shape),
                geometry.name,
                0,
                tensor.n_bytes,
            )
            for tensor in plan_tensors(geometry, qtype)
        }

    @property
    def attention(self) -> AttentionGeometry:
        """As `ModelFile.attention`."""
        return AttentionGeometry.from_metadata(self.metadata)

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""
        return sum(info.n_bytes for info in self._infos.values())

    def tensor_info(self, name: str) -> TensorInfo:
        """Type and shape; KeyError without such a tensor."""
        return self._infos[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)
