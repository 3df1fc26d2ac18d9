"""The weights that passes of a whole model use, of passes with one layer of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import LayerConfig, ModelConfig
    from .tensors import Weight


class WeightsUsed:
    """Says of each layer what its kind uses: to record passes of all layers for it takes seconds for large models.

    Parameters
    ----------
    config : ModelConfig
    brief : ModelConfig
        ``config.of_each_kind()``
    exact : bool
        See `Choices`: matrices that are turned are floats of another width then.
    """

    def __init__(self, config: ModelConfig, brief: ModelConfig, exact: bool) -> None:
        self._layers, self._exact = config.layers, exact
        self._names: dict[Weight, tuple[LayerConfig, str, bool]] = {}
        for layer in brief.layers:
            for name in layer.tensors:
                weight = layer.tensors[name]
                self._names[weight] = layer, name, False
                if len(weight.shape) == 3:
                    self._names[weight.turned(exact)] = layer, name, True
        others = {layer.kind: layer for layer in brief.layers[:-1]}
        self._like = [others[layer.kind] for layer in self._layers[:-1]] + [*brief.layers[-1:]]

    def of_all(self, used: Iterable[Weight]) -> dict[Weight, None]:
        """Those of all layers, in their order, then those of none; each once."""
        of_layer: dict[int, list[tuple[str, bool]]] = {}
        of_none = []
        for weight in dict.fromkeys(used):
            if weight in self._names:
                layer, name, is_turned = self._names[weight]
                of_layer.setdefault(layer.index, []).append((name, is_turned))
            else:
                of_none.append(weight)
        found = [
            layer.tensors[name].turned(self._exact) if is_turned else layer.tensors[name]
            for layer, like in zip(self._layers, self._like, strict=True)
            for name, is_turned in of_layer.get(like.index, ())
        ]
        return dict.fromkeys([*found, *of_none])
